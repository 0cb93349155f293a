//! The five published signup APIs ("contracts") as pure functions: request validation and response
//! bodies.
//!
//! No I/O: the front end, the worker and the import call the same code. Each contract is one file.
//! To add one, write its file, add a variant to [`ContractId`] and a line to [`contract`].

mod bulk;
mod characters;
pub mod document;
mod error_code;
mod flat_name;
mod hash_detection;
mod nested_name;
mod policy;
pub mod problem;
mod register;
pub mod response;
pub mod rules;
pub mod samples;
pub mod schema;
pub mod schema_inference;
mod signup_fields;
mod username;

pub use bulk::{
    ALLOW_HASH_LIKE, BulkField, PASSWORD_HASH, allows_hash_like, bulk_fields, bulk_schema,
    check_bulk, hash_like_error,
};
pub use document::{Document, InvalidDocument};
pub use hash_detection::{HashLike, detect_hash};
pub use policy::{CommonPasswords, Policy};
pub use response::{ApiError, ApiResponse, RenderedResponse};

use serde_json::Value;

use crate::domain::{ContractId, FieldError, User, ValidSignup};

/// One published signup API.
///
/// Implementations MUST be pure and MUST NOT put a password into any text. Checking a document that
/// [`write`](Self::write) made MUST give the same signup again: `check(write(check(d))) == check(d)`.
pub trait Contract: Sync {
    /// The contract's name.
    fn id(&self) -> ContractId;

    /// Validates a document against the contract's rules and the operator's policy. Unknown fields
    /// are ignored.
    ///
    /// # Errors
    /// The violated rules, in the contract's field order.
    fn check(
        &self,
        document: &Document<'_>,
        policy: &Policy,
    ) -> Result<ValidSignup, Vec<FieldError>>;

    /// The JSON Schema of a document with a clear password. It MUST accept every document that `check`
    /// accepts, provided that its strings are in NFC. The operator's policy is not part of it.
    fn schema(&self) -> Value;

    /// A valid document: the published example, or one made up where the contract has none.
    fn example(&self) -> Value;

    /// Writes a document with only the contract's own fields. Fields that a client added do not reach
    /// the queue.
    fn write(&self, signup: &ValidSignup) -> Value;

    /// The status and body that the contract documents for this response.
    fn render(&self, response: &ApiResponse<'_>) -> RenderedResponse;

    /// The body of `GET /users/profile` for a user this contract created.
    fn profile(&self, user: &User) -> Value;
}

/// Returns the contract with this id, as it behaves on a path shared with other contracts.
pub fn contract(id: ContractId) -> &'static dyn Contract {
    match id {
        ContractId::Username => &username::Username,
        ContractId::NestedName => &nested_name::NestedName,
        ContractId::FlatName => &flat_name::FlatName { accepts_fullname: false },
        ContractId::Register => &register::Register,
        ContractId::ErrorCode => &error_code::ErrorCode,
    }
}

/// Returns the contract with this id, as it behaves on a path that serves no other contract. Only
/// `flat-name` differs: it also accepts the nested `fullname` that its author's own client sends.
pub fn sole_contract(id: ContractId) -> &'static dyn Contract {
    match id {
        ContractId::FlatName => &flat_name::FlatName { accepts_fullname: true },
        other => contract(other),
    }
}

/// Selects the contract by the document's keys: `fullname` selects `nested-name`, `firstname` or
/// `lastname` selects `flat-name`. With neither or both, without a document, or when the selected
/// contract is not in `listed`, the first of `listed` applies.
pub fn select_contract(
    listed: &[ContractId],
    document: Option<&Document<'_>>,
) -> Option<ContractId> {
    let selected = document.and_then(|document| {
        let nested = document.has("fullname");
        let flat = document.has("firstname") || document.has("lastname");
        match (nested, flat) {
            (true, false) => Some(ContractId::NestedName),
            (false, true) => Some(ContractId::FlatName),
            _ => None,
        }
    });
    selected.filter(|id| listed.contains(id)).or_else(|| listed.first().copied())
}
