//! Golden files over real HTTP: what each of the documents, and everything that was decided beside
//! them, looks like on the wire. A file of `contracts/` is a server with an environment of its own
//! and the requests to it; status, headers and body of every answer are compared whole.
//!
//! In a request `{unique}` is a text that no other case sends, `{x*73}` a repeated one, and
//! `{token}` the last token that was answered (`{expired}`, `{forged}`, `{unsigned}` and `{gone}`
//! are made from it). In an answer `<id>`, `<token>`, `<time>`, `<key>` and `<seconds>` stand for
//! whatever has that form.

mod bodies;
mod faults;
mod golden;
mod tokens;

use crate::support::services::{EMBEDDED, PRODUCTION};

/// One test for each file and pair of services, and one that no file is left out.
macro_rules! golden_files {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                golden::run($file, include_str!(concat!("contracts/", $file)), EMBEDDED).await;
            }
        )*

        mod on_a_broker_and_a_database {
            use super::{PRODUCTION, golden};

            $(
                #[tokio::test]
                async fn $name() {
                    // Files about how long something takes are about the front alone.
                    let is_timed = ["busy.json", "late.json"].contains(&$file);
                    if PRODUCTION.is_available() && !is_timed {
                        let text = include_str!(concat!("contracts/", $file));
                        golden::run($file, text, PRODUCTION).await;
                    }
                }
            )*
        }

        #[test]
        fn no_file_is_left_out() {
            let run = std::collections::BTreeSet::from([$($file.to_owned()),*]);
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/contracts");
            let there = std::fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.ends_with(".json") && name != faults::FILE)
                .collect();
            assert_eq!(run, there);
        }
    };
}

golden_files! {
    username: "username.json",
    nested_name: "nested-name.json",
    flat_name: "flat-name.json",
    register: "register.json",
    error_code: "error-code.json",
    one_user_of_all_contracts: "one-user.json",
    reading: "reading.json",
    routing: "routing.json",
    mounts: "mounts.json",
    methods: "methods.json",
    origins_listed: "origins-listed.json",
    idempotency: "idempotency.json",
    profile: "profile.json",
    order: "order.json",
    busy: "busy.json",
    late: "late.json",
    limits: "limits.json",
    policy: "policy.json",
    identity: "identity.json",
    single_script: "single-script.json",
}
