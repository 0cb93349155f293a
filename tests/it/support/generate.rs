//! Strategies that generate valid and invalid documents, addresses and outcomes for the property tests and
//! the fuzz tests.

use muster::contract::rules;
use muster::domain::{
    ContractId, Failure, FailureCode, FieldError, FullName, Millis, Outcome, Rejection,
    RejectionCode, User, UserId,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

/// JSON text as a client may write it, with repeated keys and escaped characters.
#[derive(Clone, Debug)]
pub enum Json {
    Bare(&'static str),
    Text(Vec<(char, bool)>),
    List(Vec<Json>),
    Object(Vec<(Vec<(char, bool)>, Json)>),
}

impl Json {
    pub fn write(&self, out: &mut String) {
        match self {
            Self::Bare(text) => out.push_str(text),
            Self::Text(text) => write_text(text, out),
            Self::List(items) => {
                out.push('[');
                for (n, item) in items.iter().enumerate() {
                    out.push_str(if n == 0 { "" } else { " ," });
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(entries) => {
                out.push('{');
                for (n, (key, value)) in entries.iter().enumerate() {
                    out.push_str(if n == 0 { "\n" } else { ",\t" });
                    write_text(key, out);
                    out.push_str(": ");
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

/// Writes a JSON string. Escapes the marked characters and those that JSON requires.
fn write_text(text: &[(char, bool)], out: &mut String) {
    out.push('"');
    for &(c, escaped) in text {
        if escaped || c < ' ' || c == '"' || c == '\\' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out.push('"');
}

fn characters() -> impl Strategy<Value = Vec<(char, bool)>> {
    vec((any::<char>(), any::<bool>()), 0..8)
}

/// A key from a small set, so that keys repeat.
fn key() -> impl Strategy<Value = Vec<(char, bool)>> {
    let common = select(vec!["email", "fullname", "firstname", "password", "x", ""]);
    let escaped = (common, any::<bool>())
        .prop_map(|(key, escaped)| key.chars().map(|c| (c, escaped)).collect());
    prop_oneof![4 => escaped, 1 => characters()]
}

pub fn object() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        select(vec!["null", "true", "false", "0", "-1.5e3", "{}", "[]", "\"\""])
            .prop_map(Json::Bare),
        characters().prop_map(Json::Text),
    ];
    let value = leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Json::List),
            vec((key(), inner), 0..6).prop_map(Json::Object),
        ]
    });
    vec((key(), value), 0..8).prop_map(Json::Object)
}

/// A character that no contract's text contains. Every generated password begins with it.
pub const MARK: char = 'Ж';

/// A document with the fields of every contract, each sometimes invalid or missing, and its password, if
/// it has one.
pub fn document() -> impl Strategy<Value = (Value, Option<String>)> {
    let name = || {
        prop_oneof![
            4 => "[ \\PC]{0,8}".prop_map(Value::from),
            2 => "\\PC{90,110}".prop_map(Value::from),
            1 => any::<String>().prop_map(Value::from),
            1 => select(vec![Value::Null, json!(1), json!(["x"]), json!({ "firstname": 1 })]),
        ]
    };
    let email = prop_oneof![
        4 => address().prop_map(Value::from),
        1 => any::<String>().prop_map(Value::from),
        1 => select(vec![Value::Null, json!(""), json!(true)]),
    ];
    let password = prop_oneof![
        4 => "[A-C0-2$ a-zäЖ]{0,80}",
        1 => any::<String>(),
    ];
    let password =
        proptest::option::weighted(0.9, password.prop_map(|text| format!("{MARK}{text}")));
    (vec(name(), 5), email, password, 0..32u8).prop_map(|(names, email, password, skip)| {
        let keys = ["username", "firstname", "lastname"];
        let mut document = json!({ "fullname": { "firstname": names[3], "lastname": names[4] } });
        for (n, key) in keys.into_iter().enumerate() {
            if skip & (1 << n) == 0 {
                document[key] = names[n].clone();
            }
        }
        if skip & 8 == 0 {
            document["email"] = email;
        }
        if let Some(password) = &password {
            document["password"] = json!(password);
        }
        (document, password)
    })
}

/// A document that most contracts accept.
pub fn valid_document() -> impl Strategy<Value = Value> {
    let name = || "[ ]?[a-zA-ZéİßΣ李\u{308}]{3,60}[ ]?";
    // Some are at the length limit and exceed it in lower case: `İ` has two bytes, its lower case three.
    let email = prop_oneof![3 => address(), 1 => "[aİ]{20,32}@example\\.com"];
    let password = "[a-zé€ ]{0,12}[A-Z][0-9][$_][a-z]{7,20}";
    (name(), name(), name(), email, password).prop_map(
        |(username, firstname, lastname, email, password)| {
            json!({
                "username": username,
                "firstname": firstname,
                "lastname": lastname,
                "fullname": { "firstname": firstname, "lastname": lastname },
                "email": email,
                "password": password,
            })
        },
    )
}

// --- addresses ---

pub const ATOM: &str = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~éİ用\u{301}٣-]{1,12}";
pub const LABEL: &str = "[a-zA-Z0-9é用९]([a-z0-9é用-]{0,10}[a-z0-9é])?";

/// A valid address.
pub fn address() -> impl Strategy<Value = String> {
    (vec(ATOM, 1..3), vec(LABEL, 2..4))
        .prop_map(|(local, domain)| format!("{}@{}", local.join("."), domain.join(".")))
        .prop_filter(
            "local part within its limit, no IPv4 address as domain, no invalid punycode",
            |address| {
                let (local, domain) = address.rsplit_once('@').unwrap();
                let is_punycode = domain.split('.').any(|label| label.starts_with("xn--"));
                local.len() <= rules::LOCAL_MAX_BYTES
                    && domain.parse::<std::net::Ipv4Addr>().is_err()
                    && !is_punycode
            },
        )
}

// --- outcomes ---

pub fn contract_id() -> impl Strategy<Value = ContractId> {
    select(ContractId::ALL.to_vec())
}

pub fn user() -> impl Strategy<Value = User> {
    let text = || proptest::option::of(any::<String>());
    let name = (any::<String>(), text())
        .prop_map(|(firstname, lastname)| FullName { firstname, lastname });
    let times = (any::<i64>(), any::<i64>());
    (any::<[u8; 12]>(), contract_id(), text(), text(), proptest::option::of(name), times).prop_map(
        |(id, contract, username, email, fullname, (created_at, updated_at))| User {
            id: UserId(bson::oid::ObjectId::from_bytes(id)),
            contract,
            username,
            email,
            fullname,
            created_at: Millis(created_at),
            updated_at: Millis(updated_at),
        },
    )
}

pub fn errors() -> impl Strategy<Value = Vec<FieldError>> {
    let field = prop_oneof![
        select(vec!["username", "email", "password", ""]).prop_map(String::from),
        any::<String>(),
    ];
    let error = (field, any::<String>(), any::<String>()).prop_map(|(field, code, message)| {
        FieldError { field: field.into(), code: code.into(), message: message.into() }
    });
    vec(error, 0..5)
}

pub fn outcome() -> impl Strategy<Value = Outcome> {
    use FailureCode::{Expired, Internal, Overloaded, StoreConflict, StoreUnavailable};
    use RejectionCode::{Duplicate, Invalid, KeyReused, Unauthorized};
    let token = proptest::option::of(any::<String>());
    prop_oneof![
        (user(), token, any::<bool>()).prop_map(|(user, token, replayed)| Outcome::Registered {
            user,
            token,
            replayed,
            by_other_registration: false,
        }),
        user().prop_map(|user| Outcome::Profile { user }),
        (select(vec![Invalid, Duplicate, KeyReused, Unauthorized]), errors())
            .prop_map(|(code, errors)| Outcome::Rejected(Rejection { code, errors })),
        (
            select(vec![StoreUnavailable, StoreConflict, Expired, Overloaded, Internal]),
            any::<bool>()
        )
            .prop_map(|(code, retryable)| Outcome::Failed(Failure { code, retryable })),
    ]
}
