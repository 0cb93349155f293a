//! The API key and the contract that a bulk request needs.

use hyper::header::{AUTHORIZATION, HeaderMap};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::domain::ContractId;

/// Whether the request has the API key as its bearer token. Digests are compared, so that the response time reveals
/// neither the key nor its length.
pub(super) fn is_authorized(headers: &HeaderMap, key: &SecretString) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let given = value.as_bytes();
    let Some((scheme, given)) = given.split_at_checked("bearer ".len()) else { return false };
    let digest = |bytes: &[u8]| Sha256::digest(bytes);
    scheme.eq_ignore_ascii_case(b"bearer ")
        && bool::from(digest(given).ct_eq(&digest(key.expose_secret().as_bytes())))
}

/// The value of the query parameter `contract`; none if it is missing, unknown or repeated.
pub(super) fn contract_of_query(query: &str) -> Option<ContractId> {
    let mut named = url::form_urlencoded::parse(query.as_bytes())
        .filter(|(name, _)| name == "contract")
        .map(|(_, contract)| contract);
    match (named.next(), named.next()) {
        (Some(contract), None) => contract.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_key_is_authorized() {
        let key = SecretString::from("0123456789abcdef");
        let given = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            is_authorized(&headers, &key)
        };
        assert!(given("Bearer 0123456789abcdef") && given("bearer 0123456789abcdef"));
        for wrong in ["Bearer 0123456789abcde", "Bearer", "Bearer ", "Basic 0123456789abcdef"] {
            assert!(!given(wrong), "{wrong}");
        }
        assert!(!is_authorized(&HeaderMap::new(), &key));
    }

    #[test]
    fn contract_is_required_exactly_once() {
        assert_eq!(contract_of_query("contract=flat-name"), Some(ContractId::FlatName));
        assert_eq!(contract_of_query("x=1&contract=register"), Some(ContractId::Register));
        for none in ["", "contract=", "contract=other", "contract=register&contract=username"] {
            assert_eq!(contract_of_query(none), None, "{none}");
        }
    }
}
