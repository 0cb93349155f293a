//! Every API error in the shape of every contract, and the profile in every contract.

use std::collections::BTreeMap;

use muster::contract::{ApiError, ApiResponse, RenderedResponse, contract};
use muster::domain::{ContractId, FailureCode, FullName, Millis, User, UserId};
use serde::Deserialize;
use serde_json::{Value, json};

/// The golden file: status and body by error and contract, and profiles by contract.
pub(super) const FILE: &str = "api-errors.json";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "about")]
    _about: String,
    errors: BTreeMap<String, BTreeMap<String, (u16, Value)>>,
    profiles: BTreeMap<String, Value>,
}

fn file() -> File {
    serde_json::from_str(include_str!("api-errors.json")).unwrap()
}

#[test]
fn every_error_in_every_contract() {
    let errors = [
        ("invalid JSON", ApiError::InvalidJson),
        ("invalid key", ApiError::InvalidIdempotencyKey),
        ("too large", ApiError::BodyTooLarge),
        ("media type", ApiError::UnsupportedMediaType),
        ("key reused", ApiError::KeyReused),
        ("rate limited", ApiError::RateLimited),
        ("internal", ApiError::Internal),
        ("unavailable", ApiError::Unavailable),
        ("timeout", ApiError::Timeout),
    ];
    let rendered: BTreeMap<String, BTreeMap<String, (u16, Value)>> = errors
        .into_iter()
        .map(|(name, error)| {
            let shapes = ContractId::ALL.into_iter().map(|id| {
                let RenderedResponse { status, body } =
                    contract(id).render(&ApiResponse::Error(error));
                (id.to_string(), (status, body))
            });
            (name.to_owned(), shapes.collect())
        })
        .collect();
    assert_eq!(json!(rendered), json!(file().errors));
}

#[test]
fn failure_codes_map_to_api_errors() {
    for (failure, error) in [
        (FailureCode::StoreUnavailable, ApiError::Internal),
        (FailureCode::StoreConflict, ApiError::Internal),
        (FailureCode::UnknownKey, ApiError::Internal),
        (FailureCode::Internal, ApiError::Internal),
        (FailureCode::Expired, ApiError::Timeout),
        (FailureCode::Overloaded, ApiError::Unavailable),
    ] {
        assert_eq!(ApiError::from(failure), error, "{failure:?}");
    }
}

#[test]
fn profile_of_every_contract() {
    let rendered: BTreeMap<String, Value> = ContractId::ALL
        .into_iter()
        .map(|id| (id.to_string(), contract(id).profile(&john(id))))
        .collect();
    assert_eq!(json!(rendered), json!(file().profiles));
}

/// The example user of the documents.
fn john(contract: ContractId) -> User {
    let has_username = matches!(contract, ContractId::Username | ContractId::ErrorCode);
    let fullname = FullName { firstname: "John".into(), lastname: Some("Doe".into()) };
    User {
        id: UserId::parse("608b91d0f3a5d72a78c8f3a1").unwrap(),
        contract,
        username: has_username.then(|| "John Doe".into()),
        email: Some("john.doe@example.com".into()),
        fullname: (!has_username).then_some(fullname),
        created_at: Millis(1_696_161_600_000),
        updated_at: Millis(1_696_161_600_000),
    }
}
