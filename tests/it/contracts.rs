//! Golden files over HTTP. Each file in `contracts/` has the environment of a server and requests to it. Status,
//! headers and body of every response are compared completely.
//!
//! In a request `{unique}` is replaced by a unique text, `{x*73}` by 73 times `x`, and `{token}` by the token of the
//! last response. `{expired}`, `{forged}`, `{unsigned}` and `{gone}` are changed versions of that token. In a
//! response `<id>`, `<token>`, `<time>`, `<key>` and `<seconds>` match any value of that form.

mod api_errors;
mod bodies;
mod golden;
mod tokens;

use crate::support::services::{EMBEDDED, PRODUCTION};

/// Defines one test for each file and pair of services, and a test that every file is listed.
macro_rules! golden_files {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                golden::run($file, include_str!(concat!("contracts/", $file)), EMBEDDED).await;
            }
        )*

        mod on_broker_and_database {
            use super::{PRODUCTION, golden};

            $(
                #[tokio::test]
                async fn $name() {
                    // Files with timing test only the front.
                    let is_timed = ["busy.json", "late.json"].contains(&$file);
                    if PRODUCTION.is_available() && !is_timed {
                        let text = include_str!(concat!("contracts/", $file));
                        golden::run($file, text, PRODUCTION).await;
                    }
                }
            )*
        }

        #[test]
        fn every_golden_file_is_run() {
            let run = std::collections::BTreeSet::from([$($file.to_owned()),*]);
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/contracts");
            let files = std::fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.ends_with(".json") && name != api_errors::FILE)
                .collect();
            assert_eq!(run, files);
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
