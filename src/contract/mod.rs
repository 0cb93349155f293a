//! The five documented endpoints as pure functions: what a request must look like and what every
//! answer looks like. No I/O; the front end and the worker call the same code.
//!
//! One file is one contract. Adding one is a new file, a variant of
//! [`ContractId`] and a line in [`contract`].

pub mod answer;
mod bulk;
mod characters;
pub mod document;
mod error_code;
mod flat_name;
mod hash_like;
mod names;
mod nested_name;
mod policy;
pub mod problem;
mod register;
pub mod rules;
pub mod samples;
pub mod schema;
pub mod shape;
mod username;

pub use answer::{Answer, Fault, Rendered};
pub use bulk::{
    ALLOW_HASH_LIKE, BulkField, PASSWORD_HASH, allows_hash_like, bulk_fields, bulk_schema,
    check_bulk, looks_like_hash,
};
pub use document::{Document, Unreadable};
pub use hash_like::{HashLike, hash_like};
pub use policy::{CommonPasswords, Policy};

use serde_json::Value;

use crate::signup::{Candidate, ContractId, FieldError, User};

/// One documented registration endpoint.
///
/// Implementations MUST be pure, MUST answer a candidate they wrote themselves with the same
/// candidate (`check(write(check(d))) == check(d)`), and MUST NOT put a password into any text.
pub trait Contract: Sync {
    /// Its name.
    fn id(&self) -> ContractId;

    /// Picks the fields it knows out of a document and applies its rules and the operator's policy: one
    /// error a field, in the contract's order.
    fn check(&self, document: &Document<'_>, policy: &Policy)
    -> Result<Candidate, Vec<FieldError>>;

    /// The document as a JSON Schema, its password in clear. MUST accept whatever `check` accepts,
    /// as long as texts are in NFC; knows no policy.
    fn schema(&self) -> Value;

    /// A document as it is published with the contract, or as it might be where none is.
    fn example(&self) -> Value;

    /// Writes the document anew from a candidate: only the fields the contract knows, so that
    /// nothing else a client sent travels on.
    fn write(&self, candidate: &Candidate) -> Value;

    /// The documented answer.
    fn render(&self, answer: &Answer<'_>) -> Rendered;

    /// The body of `GET /users/profile` for a user this contract created.
    fn profile(&self, user: &User) -> Value;
}

/// The contract of that name.
pub fn contract(id: ContractId) -> &'static dyn Contract {
    match id {
        ContractId::Username => &username::Username,
        ContractId::NestedName => &nested_name::NestedName,
        ContractId::FlatName => &flat_name::FlatName { nested_too: false },
        ContractId::Register => &register::Register,
        ContractId::ErrorCode => &error_code::ErrorCode,
    }
}

/// The contract of that name where it has a path to itself. Only `flat-name` behaves otherwise
/// there: it also takes the nested `fullname` that its author's own client sends.
pub fn mounted_alone(id: ContractId) -> &'static dyn Contract {
    match id {
        ContractId::FlatName => &flat_name::FlatName { nested_too: true },
        other => contract(other),
    }
}

/// Chooses among the contracts that share a path by the keys a document has: `fullname` means
/// `nested-name`, `firstname` or `lastname` means `flat-name`. With neither, with both, or when
/// the chosen one is not among them, it is the first of `listed`.
pub fn choose(listed: &[ContractId], document: Option<&Document<'_>>) -> Option<ContractId> {
    let by_shape = document.and_then(|document| {
        let nested = document.has("fullname");
        let flat = document.has("firstname") || document.has("lastname");
        match (nested, flat) {
            (true, false) => Some(ContractId::NestedName),
            (false, true) => Some(ContractId::FlatName),
            _ => None,
        }
    });
    by_shape.filter(|id| listed.contains(id)).or_else(|| listed.first().copied())
}
