//! Property tests: parsing of documents, validation rules, serialization for the queue, and response bodies.

use std::process::Command;

use muster::contract::document::{ObjectValue, TextValue};
use muster::contract::{
    ApiError, ApiResponse, Contract, Document, Policy, contract, rules, sole_contract,
};
use muster::domain::{ContractId, Email, FieldError, IdempotencyKey, Outcome, ValidSignup};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use unicode_normalization::UnicodeNormalization;

use crate::support::generate::{
    ATOM, LABEL, MARK, address, contract_id, document, errors, object, outcome, user,
    valid_document,
};
use crate::support::spec::accepts;

/// Without a file of earlier failures: a failure becomes its own test.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

// --- documents ---------------------------------------------------------------------------------

/// Compares a document with the value that serde_json parses, including nested objects.
pub fn assert_same(document: &Document<'_>, value: &Value) -> Result<(), TestCaseError> {
    for (key, value) in value.as_object().unwrap() {
        prop_assert!(document.has(key));
        match (document.text(key), value) {
            (TextValue::Absent, Value::Null) => {}
            (TextValue::Text(text), Value::String(other)) => prop_assert_eq!(&*text, other),
            (TextValue::WrongType, other) => prop_assert!(!other.is_null() && !other.is_string()),
            (_, other) => prop_assert!(false, "{} differs from {}", key, other),
        }
        match (document.object(key), value) {
            (ObjectValue::Absent, Value::Null) => {}
            (ObjectValue::Object(inner), Value::Object(_)) => assert_same(&inner, value)?,
            (ObjectValue::WrongType, other) => prop_assert!(!other.is_null() && !other.is_object()),
            (_, other) => prop_assert!(false, "{} differs from {}", key, other),
        }
    }
    Ok(())
}

/// Checks a body with every contract and renders the errors.
pub fn check_every_contract(body: &[u8]) {
    let Ok(document) = Document::parse(body) else { return };
    for id in ContractId::ALL {
        for contract in [contract(id), sole_contract(id)] {
            if let Err(errors) = contract.check(&document, &Policy::default()) {
                contract.render(&ApiResponse::Invalid(&errors));
            }
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_parsed_or_rejected(bytes in vec(any::<u8>(), 0..300)) {
        check_every_contract(&bytes);
    }

    #[test]
    fn json_like_text_parses_as_in_serde_json(
        text in r#"\{?("(email|fullname|\\u006[0-9]|\\ud83d|\\ude00|\\"|é)*"|[\[\]{}:,"\\ ]|null|1e999|-?0){0,24}\}?"#,
    ) {
        check_every_contract(text.as_bytes());
        let read = Document::parse(text.as_bytes());
        // serde_json rejects numbers out of its range; muster ignores them.
        match serde_json::from_str::<Value>(&text) {
            Ok(value @ Value::Object(_)) => assert_same(&read.expect("an object"), &value)?,
            Ok(_) => prop_assert!(read.is_err()),
            Err(_) => prop_assert!(read.is_err() || text.contains("1e999")),
        }
    }

    #[test]
    fn documents_parse_as_in_serde_json(json in object()) {
        let mut text = String::new();
        json.write(&mut text);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_same(&Document::parse(text.as_bytes()).unwrap(), &value)?;
        check_every_contract(text.as_bytes());
    }
}

// --- rules -------------------------------------------------------------------------------------

/// Position of a field in the error order of its contract.
fn place(contract: ContractId, field: &str) -> usize {
    let order: &[&str] = match contract {
        ContractId::Username | ContractId::ErrorCode => &["username", "email", "password"],
        ContractId::FlatName => &["email", "firstname", "lastname", "password"],
        ContractId::NestedName => &["email", "fullname.firstname", "fullname.lastname", "password"],
        ContractId::Register => {
            &["", "email", "fullname.firstname", "fullname.lastname", "password"]
        }
    };
    order.iter().position(|name| *name == field).expect("a field of the contract")
}

fn parts(candidate: &ValidSignup) -> (ContractId, String, Option<&str>, &str) {
    let password = candidate.password.in_document().1;
    (
        candidate.contract,
        candidate.fingerprint(),
        candidate.email.as_ref().map(Email::key),
        password,
    )
}

fn check(contract: &dyn Contract, document: &Value) -> Result<ValidSignup, Vec<FieldError>> {
    contract.check(&Document::parse(document.to_string().as_bytes()).unwrap(), &Policy::default())
}

/// Fails unless the worker reads each accepted document as the front wrote it. Returns whether any contract
/// accepts the document.
pub fn assert_survives_the_queue(document: &Document<'_>) -> Result<bool, TestCaseError> {
    let mut is_accepted = false;
    for id in ContractId::ALL {
        for sender in [contract(id), sole_contract(id)] {
            let Ok(candidate) = sender.check(document, &Policy::default()) else { continue };
            is_accepted = true;
            let written = sender.write(&candidate);
            let again = check(contract(id), &written)
                .map_err(|errors| TestCaseError::fail(format!("{written}: {errors:?}")))?;
            prop_assert_eq!(parts(&candidate), parts(&again));
        }
    }
    Ok(is_accepted)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn errors_are_ordered_and_without_the_password((document, password) in document()) {
        for id in ContractId::ALL {
            for contract in [contract(id), sole_contract(id)] {
                let Err(errors) = check(contract, &document) else { continue };
                prop_assert!(!errors.is_empty());
                let places: Vec<usize> =
                    errors.iter().map(|error| place(id, &error.field)).collect();
                let once = places.is_sorted_by(|a, b| a < b);
                let several = id == ContractId::ErrorCode && places.is_sorted();
                prop_assert!(once || several, "{}: {:?}", id, errors);
                if id == ContractId::Username || errors[0].field.is_empty() {
                    prop_assert_eq!(errors.len(), 1);
                }
                if let Some(password) = &password {
                    let text = contract.render(&ApiResponse::Invalid(&errors)).body.to_string();
                    // One contract repeats the email in its errors.
                    let email = document["email"].as_str().unwrap_or_default();
                    if !email.contains(MARK) {
                        prop_assert!(!text.contains(password), "{}", text);
                        prop_assert!(!text.contains(MARK), "{}", text);
                    }
                }
            }
        }
    }

    #[test]
    fn valid_document_survives_the_queue(document in valid_document()) {
        let text = document.to_string();
        let read = Document::parse(text.as_bytes()).unwrap();
        prop_assert!(assert_survives_the_queue(&read)?, "no contract accepts {}", text);
    }

    #[test]
    fn any_document_survives_the_queue((document, _) in document()) {
        let text = document.to_string();
        assert_survives_the_queue(&Document::parse(text.as_bytes()).unwrap())?;
    }

    #[test]
    fn passwords_are_never_changed(password in "[ -~é€]{6,24}") {
        let document = json!({ "username": "ann", "password": password });
        let candidate = check(contract(ContractId::Username), &document).unwrap();
        prop_assert_eq!(candidate.password.in_document().1, password);
    }
}

// --- addresses ---------------------------------------------------------------------------------

proptest! {
    #![proptest_config(config())]

    #[test]
    fn valid_parts_make_a_valid_address(address in address()) {
        prop_assert!(rules::is_address(&address));
    }

    #[test]
    fn one_invalid_character_makes_an_address_invalid(
        address in address(),
        at in any::<prop::sample::Index>(),
        bad in select(vec![
            ' ', '\t', '\n', '\0', '\u{7f}', '\u{85}', '\u{a0}', '\u{3000}', '\u{200b}', '\u{200d}',
            '"', '(', ')', ',', ':', ';', '<', '>', '[', ']', '\\', '@', '😀', '❤', '€', '½', '。',
        ]),
    ) {
        let mut characters: Vec<char> = address.chars().collect();
        characters.insert(at.index(characters.len() + 1), bad);
        let invalid: String = characters.into_iter().collect();
        prop_assert!(!rules::is_address(&invalid), "{}", invalid);
    }

    #[test]
    fn misplaced_dots_make_an_address_invalid(address in address(), at in any::<prop::sample::Index>()) {
        let (local, domain) = address.split_once('@').unwrap();
        for invalid in [
            format!(".{address}"),
            format!("{address}."),
            format!("{local}.@{domain}"),
            format!("{local}@.{domain}"),
            address.replacen('@', "..@", 1),
        ] {
            prop_assert!(!rules::is_address(&invalid), "{}", invalid);
        }
        let dots: Vec<usize> = address.match_indices('.').map(|(at, _)| at).collect();
        let mut with_double_dot = address.clone();
        with_double_dot.insert(*at.get(&dots), '.');
        prop_assert!(!rules::is_address(&with_double_dot), "{}", with_double_dot);
    }

    #[test]
    fn malformed_domain_makes_an_address_invalid(local in ATOM, label in LABEL, top in LABEL) {
        for invalid in [
            format!("{local}@{label}"),
            format!("{local}@-{label}.{top}"),
            format!("{local}@{label}-.{top}"),
            format!("{local}@{label}.{top}-"),
            format!("{local}@[{label}.{top}]"),
            format!("@{label}.{top}"),
            format!("{local}@"),
            format!("{local} <{local}@{label}.{top}>"),
            format!("\"{local}\"@{label}.{top}"),
        ] {
            prop_assert!(!rules::is_address(&invalid), "{}", invalid);
        }
    }

    #[test]
    fn addresses_are_limited_in_bytes(
        letter in select(vec!['a', 'é', '用']),
        local in 1..90usize,
        labels in vec(1..80usize, 1..6),
    ) {
        let filled = |bytes: usize| letter.to_string().repeat(bytes.div_ceil(letter.len_utf8()));
        let labels: Vec<String> = labels.into_iter().map(filled).collect();
        let address = format!("{}@{}.example", filled(local), labels.join("."));
        let fits = address.len() <= 254
            && filled(local).len() <= 64
            && labels.iter().all(|label| label.len() <= 63);
        prop_assert_eq!(rules::is_address(&address), fits, "{}", address);
    }

    #[test]
    fn ipv4_address_is_not_a_domain(host in any::<std::net::Ipv4Addr>()) {
        let address = format!("a@{host}");
        prop_assert!(!rules::is_address(&address));
    }
}

// --- invisible characters ----------------------------------------------------------------------

/// All ignorable and bidirectional control code points, from Perl's Unicode tables.
fn invisible_to_perl() -> Vec<u32> {
    const SCRIPT: &str = r#"for my $c (0 .. 0x10FFFF) {
        next if $c >= 0xD800 && $c <= 0xDFFF;
        print "$c\n" if chr($c) =~ /\p{Default_Ignorable_Code_Point}|\p{Bidi_Control}/;
    }"#;
    let output = Command::new("perl").args(["-e", SCRIPT]).output().expect("perl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn invisible_code_points_are_rejected() {
    let invisible = invisible_to_perl();
    assert!(invisible.len() > 4000, "{} code points", invisible.len());
    let (policy, text) = (Policy::default(), |text: String| TextValue::Text(text.into()));
    for c in '\0'..=char::MAX {
        let hidden = c == '\u{2800}' || invisible.binary_search(&u32::from(c)).is_ok();
        let username = rules::username(&text(format!("a{c}b")), &policy);
        assert_eq!(username.is_err(), hidden || c.is_control(), "a user name with {c:?}");
        if hidden {
            assert_eq!(username, Err(rules::Violation::ForbiddenCharacter), "{c:?}");
            let alone = rules::username(&text(format!(" {c}")), &policy);
            assert_eq!(alone, Err(rules::Violation::Empty), "{c:?}");
            for address in [format!("a{c}b@c.co"), format!("ab@c{c}d.co"), format!("{c}ab@c.co")] {
                let error = rules::email(&text(address), &policy).err();
                assert_eq!(
                    error,
                    Some(rules::Violation::ForbiddenCharacter),
                    "an address with {c:?}"
                );
            }
        }
    }
}

// --- email keys --------------------------------------------------------------------------------

fn key(address: &str) -> String {
    let email = Email::new(address.to_owned());
    email.unwrap_or_else(|| panic!("{address} has no key")).key().to_owned()
}

/// Replaces ASCII letters and digits of a domain by full-width forms.
fn in_full_width(domain: &str) -> String {
    let wide = |c: char| match c {
        '0'..='9' | 'A'..='Z' | 'a'..='z' => char::from_u32(u32::from(c) + 0xFEE0).unwrap(),
        other => other,
    };
    domain.chars().map(wide).collect()
}

#[test]
fn email_key_ignores_case_and_composition() {
    for c in '\0'..=char::MAX {
        let address = format!("a{c}@b.example");
        if !rules::is_address(&address) {
            continue;
        }
        let one = key(&address);
        assert_eq!(key(&one), one, "{c:?}: the key of a key is itself");
        let decomposed: String = address.nfd().collect();
        for other in [address.to_lowercase(), decomposed.to_lowercase(), decomposed] {
            assert_eq!(key(&other), one, "{c:?} as {other}");
        }
        // The upper case of the dotless i is I, whose lower case is i.
        if c != 'ı' {
            assert_eq!(key(&address.to_uppercase().replace("EXAMPLE", "example")), one, "{c:?}");
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn email_key_is_the_same_for_every_spelling(address in address()) {
        let one = key(&address);
        prop_assert_eq!(&key(&one), &one, "the key of a key is itself");
        let (local, domain) = address.split_once('@').unwrap();
        let (unicode, valid) = idna::domain_to_unicode(domain);
        prop_assert!(valid.is_ok());
        let ascii = idna::domain_to_ascii(domain).unwrap();
        for domain in [unicode, ascii.to_uppercase(), ascii, in_full_width(domain)] {
            let composed: String = format!("{local}@{domain}").nfc().collect();
            let decomposed: String = composed.nfd().collect();
            for other in [composed, decomposed] {
                prop_assert_eq!(&key(&other), &one, "{}", other);
            }
        }
        prop_assert_eq!(key(&format!("{}@{domain}", local.to_lowercase())), one);
    }

    #[test]
    fn different_local_parts_have_different_keys(one in "[a-z0-9.+]{1,12}", other in "[a-z0-9.+]{1,12}") {
        let equal = key(&format!("{one}@b.example")) == key(&format!("{other}@b.example"));
        prop_assert_eq!(equal, one == other);
    }
}

// --- idempotency keys --------------------------------------------------------------------------

proptest! {
    #![proptest_config(config())]

    #[test]
    fn idempotency_key_has_16_to_128_visible_characters(key in "[!-~&&[^\"]]{0,140}") {
        let fits = (16..=128).contains(&key.len());
        let bare = IdempotencyKey::parse(key.as_bytes());
        prop_assert_eq!(bare.is_some(), fits);
        prop_assert_eq!(&IdempotencyKey::parse(format!(" \"{key}\" ").as_bytes()), &bare);
    }

    #[test]
    fn returned_idempotency_key_parses_to_itself(value in vec(prop_oneof![b' '..=b'~', Just(b'"')], 10..140)) {
        if let Some(key) = IdempotencyKey::parse(&value) {
            prop_assert_eq!(IdempotencyKey::parse(key.as_str().as_bytes()), Some(key));
        }
    }

    #[test]
    fn one_invalid_byte_makes_an_idempotency_key_invalid(
        mut key in vec(b'#'..=b'~', 20..100),
        at in 1..19usize,
        bad in prop_oneof![0..=b' ', 127..=255u8],
    ) {
        key[at] = bad;
        prop_assert!(IdempotencyKey::parse(&key).is_none());
    }
}

// --- outcomes and responses --------------------------------------------------------------------

proptest! {
    #![proptest_config(config())]

    #[test]
    fn outcome_survives_serialization(outcome in outcome()) {
        let bytes = serde_json::to_vec(&outcome).unwrap();
        let matches_schema = accepts("reply", &serde_json::from_slice(&bytes).unwrap());
        prop_assert!(matches_schema, "the reply schema rejects {:?}", outcome);
        prop_assert_eq!(serde_json::from_slice::<Outcome>(&bytes).unwrap(), outcome);
    }

    #[test]
    fn every_response_body_is_an_object(
        id in contract_id(),
        user in user(),
        token in proptest::option::of(any::<String>()),
        errors in errors(),
    ) {
        use ApiError::*;
        let faults = [
            InvalidJson,
            InvalidIdempotencyKey,
            BodyTooLarge,
            UnsupportedMediaType,
            KeyReused,
            RateLimited,
            Internal,
            Unavailable,
            Timeout,
        ];
        let answers = [
            ApiResponse::Created { user: &user, token: token.as_deref() },
            ApiResponse::Invalid(&errors),
            ApiResponse::Duplicate(&errors),
        ];
        for answer in answers.into_iter().chain(faults.map(ApiResponse::Error)) {
            let rendered = contract(id).render(&answer);
            prop_assert!(rendered.body.is_object(), "{}", rendered.body);
            prop_assert!((200..600).contains(&rendered.status), "{}", rendered.status);
        }
        prop_assert!(contract(id).profile(&user).is_object());
    }
}
