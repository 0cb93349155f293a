//! Micro-benchmarks of single functions: `cargo bench`. `muster bench` measures whole signups.

#![allow(missing_docs, reason = "a benchmark has no users")]
#![allow(clippy::unwrap_used, reason = "an error stops the benchmark")]

use std::time::Duration;

use divan::{Bencher, counter::ItemsCount};
use muster::contract::{ApiResponse, Document, Policy, contract, rules};
use muster::domain::{
    Clock, ContractId, FullName, IdempotencyKey, MessageId, Millis, Origin, Outcome,
    RegistrationId, User, UserId,
};
use muster::password::Kernel;
use muster::password::kernel::BatchTimer;
use muster::token::{ClaimRules, Signer, TokenKey};

fn main() {
    divan::main();
}

const BODY: &[u8] = br#"{"fullname":{"firstname":"John","lastname":"Doe"},
    "email":"john.doe@example.com","password":"securePassword123"}"#;

fn user() -> User {
    User {
        id: UserId::generate(),
        contract: ContractId::NestedName,
        username: None,
        email: Some("john.doe@example.com".into()),
        fullname: Some(FullName { firstname: "John".into(), lastname: Some("Doe".into()) }),
        created_at: Millis(1_700_000_000_000),
        updated_at: Millis(1_700_000_000_000),
    }
}

/// A full batch at cost 5 of the kernel that a worker starts with, and one hash of the `bcrypt` crate;
/// items are passwords.
#[divan::bench(args = [Kernel::Scalar, Kernel::initial(None).0])]
fn hash(bencher: Bencher<'_, '_>, kernel: Kernel) {
    let mut timer = BatchTimer::new(kernel);
    bencher.counter(ItemsCount::new(kernel.width())).bench_local(|| timer.time(5));
}

#[divan::bench]
fn read_and_check() -> bool {
    let document = Document::parse(divan::black_box(BODY)).unwrap();
    contract(ContractId::NestedName).check(&document, &Policy::default()).is_ok()
}

#[divan::bench]
fn write(bencher: Bencher<'_, '_>) {
    let contract = contract(ContractId::NestedName);
    let signup = contract.check(&Document::parse(BODY).unwrap(), &Policy::default()).unwrap();
    bencher.bench_local(|| contract.write(&signup).to_string());
}

#[divan::bench]
fn render(bencher: Bencher<'_, '_>) {
    let (contract, user) = (contract(ContractId::NestedName), user());
    let response = ApiResponse::Created { user: &user, token: Some("a.token.of-some-length") };
    bencher.bench_local(|| contract.render(&response).body.to_string());
}

#[divan::bench]
fn address() -> bool {
    rules::is_address(divan::black_box("john.doe@example.com"))
}

#[divan::bench]
fn identity() -> RegistrationId {
    let key = IdempotencyKey::parse(b"0123456789abcdef0123456789abcdef").unwrap();
    let message = MessageId::for_http(ContractId::NestedName, &key);
    RegistrationId::derive(&Origin::Http, ContractId::NestedName, &message)
}

#[divan::bench]
fn reply_codec(bencher: Bencher<'_, '_>) {
    let outcome = Outcome::Registered {
        user: user(),
        token: Some("a.b.c".into()),
        replayed: false,
        by_other_registration: false,
    };
    bencher.bench_local(|| {
        let bytes = serde_json::to_vec(&outcome).unwrap();
        serde_json::from_slice::<Outcome>(&bytes).unwrap()
    });
}

#[divan::bench]
fn sign_token(bencher: Bencher<'_, '_>) {
    let secret = "0123456789abcdef0123456789abcdef".to_owned().into();
    let claim_rules = ClaimRules { lifetime: Duration::from_secs(86_400), ..ClaimRules::default() };
    let signer = Signer::new(TokenKey::secret(&secret), Vec::new(), claim_rules, Clock::system());
    let user = user();
    bencher.bench_local(|| signer.sign(&user));
}
