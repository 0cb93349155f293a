//! Imports exports of other systems with the commands of docs/import.md.

use std::fs;
use std::process::Command;

use crate::support::Setup;
use crate::support::importer::{import, reports};

/// An export, its flags in docs/import.md, and the expected code of each row.
struct Export {
    name: &'static str,
    exported: String,
    /// The `jq` filter that converts it to rows.
    filter: Option<&'static str>,
    flags: &'static str,
    codes: &'static [&'static str],
}

const BCRYPT: &str = "$2a$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u";
const OTHER: &str = "pbkdf2_sha256$260000$c2FsdA$aGFzaA=";
/// The columns of `auth.users` of Supabase.
const SUPABASE: &str = "instance_id,id,aud,role,email,encrypted_password,email_confirmed_at,\
    invited_at,confirmation_token,confirmation_sent_at,recovery_token,recovery_sent_at,\
    email_change_token_new,email_change,email_change_sent_at,last_sign_in_at,raw_app_meta_data,\
    raw_user_meta_data,is_super_admin,created_at,updated_at,phone,phone_confirmed_at,phone_change,\
    phone_change_token,phone_change_sent_at,confirmed_at,email_change_token_current,\
    email_change_confirm_status,banned_until,reauthentication_token,reauthentication_sent_at,\
    is_sso_user,deleted_at,is_anonymous";

/// A row of [`SUPABASE`] with all other cells empty.
fn supabase(id: &str, email: &str, hash: &str) -> String {
    let cell = |name: &str| match name {
        "id" => id.to_owned(),
        "email" => email.to_owned(),
        "encrypted_password" => hash.to_owned(),
        _ => String::new(),
    };
    SUPABASE.split(',').map(cell).collect::<Vec<_>>().join(",")
}

fn exports() -> [Export; 7] {
    let auth0 = |email: &str| {
        let hash = BCRYPT.replacen("$2a$", "$2b$", 1);
        format!(
            r#"{{"_id":{{"$oid":"60425dc4"}},"email_verified":false,{email},"passwordHash":"{hash}","password_set_date":{{"$date":"2021-03-05T16:35:16.775Z"}},"tenant":"t","connection":"Username-Password-Authentication","_tmp_is_unique":true}}"#,
        )
    };
    let keycloak = |name: &str, credentials: &str| {
        format!(
            r#"{{"id":"{name}","username":"{name}","emailVerified":true,"enabled":true,"firstName":"Ann","lastName":"Lee","email":"{name}@example.com"{credentials}}}"#
        )
    };
    let secret = |value: &str| {
        let secret =
            format!(r#"{{"value":"{value}","salt":"c2FsdA==","additionalParameters":{{}}}}"#);
        format!(
            r#","credentials":[{{"type":"otp","secretData":"{{\"value\":\"x\"}}"}},{{"type":"password","secretData":{},"credentialData":"{{}}"}}]"#,
            serde_json::Value::from(secret)
        )
    };
    let scrypt = "5mvBbhMHD3nU9uAyAMuSFZXFUVNVBKEW5aZNcYjR4vGC4UmKdz==";
    [
        Export {
            name: "Auth0",
            exported: [
                auth0(r#""email":"ann@example.com""#),
                auth0(
                    r#""identifiers":[{"type":"email","value":"bob@example.com","verified":false}]"#,
                ),
            ]
            .join("\n"),
            filter: Some(
                r#".email //= ([.identifiers[]? | select(.type == "email") | .value] | first)"#,
            ),
            flags: "--contract username --map email=username --map email=email",
            codes: &["registered", "registered"],
        },
        Export {
            name: "Firebase",
            exported: format!(
                r#"{{"users":[{{"localId":"u1","email":"ann@example.com","emailVerified":true,"passwordHash":"{scrypt}","salt":"c2FsdA==","displayName":"Ann Lee","createdAt":"1500000000000","providerUserInfo":[]}},{{"localId":"u2","email":"bob@example.com","password":"a-new-one"}}]}}"#
            ),
            filter: Some(".users[]"),
            flags: "--contract username --map email=username --map email=email --id-field localId",
            codes: &["INVALID_HASH", "registered"],
        },
        Export {
            name: "Cognito",
            exported: r#"{"Users":[{"Username":"ann","Attributes":[{"Name":"sub","Value":"s"},{"Name":"email","Value":"ann@example.com"}],"UserStatus":"CONFIRMED","Enabled":true,"password":"a-new-one"}]}"#.to_owned(),
            filter: Some(".Users[] | .Attributes |= from_entries"),
            flags: "--contract username --map Username=username --map Attributes.email=email",
            codes: &["registered"],
        },
        Export {
            name: "Keycloak",
            exported: format!(
                r#"{{"realm":"R","users":[{},{},{}]}}"#,
                keycloak("ann", &secret(BCRYPT)),
                keycloak("bob", &secret(scrypt)),
                keycloak("federated", "")
            ),
            filter: Some(
                r#".users[] | .passwordHash = ([.credentials[]? | select(.type == "password") | .secretData | fromjson | .value] | first)"#,
            ),
            flags: "--contract register --map firstName=fullname.firstname --map lastName=fullname.lastname --id-field id",
            codes: &["registered", "INVALID_HASH", "EMPTY_FIELD"],
        },
        Export {
            name: "Supabase",
            exported: [
                SUPABASE.to_owned(),
                supabase("u1", "ann@example.com", BCRYPT),
                supabase("u2", "bob@example.com", ""),
            ]
            .join("\n"),
            filter: None,
            flags: "--contract username --map email=username --map email=email --map encrypted_password=passwordHash --id-field id",
            codes: &["registered", "EMPTY_FIELD"],
        },
        Export {
            name: "WordPress",
            exported: format!(
                "ID,user_login,user_email,user_pass\n1,ann,ann@example.com,{}\n\
                 2,bob,bob@example.com,$P$B55D6LjfHDkINU5wF.v2BuuzO0/XPk/\n3,eve,eve@example.com,$wp{BCRYPT}\n",
                BCRYPT.replacen("$2a$", "$2y$", 1)
            ),
            filter: None,
            flags: "--contract username --map user_login=username --map user_email=email --map user_pass=passwordHash --id-field ID",
            codes: &["registered", "INVALID_HASH", "INVALID_HASH"],
        },
        Export {
            name: "Django",
            exported: format!(
                "id,username,email,password\n1,ann,ann@example.com,{BCRYPT}\n2,bob,bob@example.com,{OTHER}\n"
            ),
            filter: None,
            flags: "--contract username --map password=passwordHash --id-field id",
            codes: &["registered", "INVALID_HASH"],
        },
    ]
}

/// Runs `jq` on a file. `None` without `jq`.
fn filtered(setup: &Setup, file: &str, filter: &str) -> Option<Vec<u8>> {
    let mut jq = Command::new("jq");
    let made = jq.args(["-c", filter, file]).current_dir(setup.directory()).output().ok()?;
    assert!(made.status.success(), "{filter}: {}", String::from_utf8_lossy(&made.stderr));
    Some(made.stdout)
}

#[tokio::test]
async fn exports_of_other_systems_are_imported_as_documented() {
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/import.md")).unwrap();
    let guide = guide.replace(" \\\n  ", " ");
    for Export { name, exported, filter, flags, codes } in exports() {
        assert!(guide.contains(flags), "docs/import.md has no flags {flags} for {name}");
        assert!(guide.contains(name) && guide.contains(&format!("| {name} |")), "{name}");
        let setup = Setup::embedded();
        let file = if filter.is_some() { "users.ndjson" } else { "users.csv" };
        let write = |bytes: &[u8]| fs::write(setup.directory().join(file), bytes).unwrap();
        write(exported.as_bytes());
        if let Some(filter) = filter {
            assert!(
                guide.contains(&format!("jq -c '{filter}'")),
                "docs/import.md has no filter {filter} for {name}"
            );
            let Some(rows) = filtered(&setup, file, filter) else { continue };
            write(&rows);
        }
        let flags: Vec<&str> = flags.split(' ').collect();
        let output = import(&setup, &[&[file], &flags[..]].concat()).await;
        let mut reports = reports(&output.stdout);
        reports.sort_by_key(|report| report["line"].as_u64());
        let found: Vec<&str> = reports
            .iter()
            .map(|report| {
                report["errors"][0]["code"].as_str().or(report["outcome"].as_str()).unwrap()
            })
            .collect();
        assert_eq!(found, codes, "{name}: {}\n{}", output.stderr, output.stdout);
    }
}
