//! The claims of tokens, and invalid tokens for the golden files.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Value, json};

use crate::support::{Setup, muster::SECRET, services::unique};

/// The claims of a token with a valid form and signature.
pub(super) fn claims(token: &str) -> Option<Value> {
    let key = DecodingKey::from_secret(SECRET.as_bytes());
    let data = jsonwebtoken::decode::<Value>(token, &key, &Validation::new(Algorithm::HS256));
    data.ok().map(|data| data.claims)
}

/// The same claims, expired.
pub(super) fn expired(token: &str) -> String {
    let claims = claims(token).unwrap();
    let [iat, exp] = ["iat", "exp"].map(|name| json!(claims[name].as_i64().unwrap() - 100_000));
    signed(with(claims, &[("iat", iat), ("exp", exp)]), SECRET)
}

/// The same claims, signed with another secret.
pub(super) fn forged(token: &str) -> String {
    signed(claims(token).unwrap(), "another secret, of 32 bytes and more, too")
}

/// The same claims with `"alg":"none"`.
pub(super) fn unsigned(token: &str) -> String {
    let claims = token.split('.').nth(1).unwrap();
    // {"alg":"none","typ":"JWT"}
    format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.")
}

/// The same claims for a user that does not exist.
pub(super) fn unknown_user(token: &str) -> String {
    let unknown_id = json!("608b91d0f3a5d72a78c8f3a1");
    signed(
        with(claims(token).unwrap(), &[("sub", unknown_id.clone()), ("_id", unknown_id)]),
        SECRET,
    )
}

fn with(mut claims: Value, changes: &[(&str, Value)]) -> Value {
    for (name, value) in changes {
        claims[*name] = value.clone();
    }
    claims
}

fn signed(claims: Value, secret: &str) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

#[tokio::test]
async fn token_claims_have_user_contract_and_lifetime() {
    let muster = Setup::embedded().start().await;
    let name = json!({ "firstname": "John", "lastname": "Doe" });
    let [ann, bob, c2, c3, c4] = ["ann", "bob", "c2", "c3", "c4"].map(unique);
    let address = |name: &str| format!("{name}@example.com");
    let password = "securepassword";
    let requests = [
        (
            "username",
            "/signup",
            json!({ "username": ann, "email": address(&ann), "password": password }),
            json!({ "username": ann, "email": address(&ann) }),
        ),
        (
            "username",
            "/signup",
            json!({ "username": bob, "password": password }),
            json!({ "username": bob }),
        ),
        (
            "nested-name",
            "/users/register",
            json!({ "fullname": name, "email": address(&c2), "password": password }),
            json!({}),
        ),
        (
            "flat-name",
            "/users/register",
            json!({ "firstname": "John", "email": address(&c3), "password": password }),
            json!({}),
        ),
        (
            "register",
            "/register",
            json!({ "fullname": name, "email": address(&c4), "password": password }),
            json!({}),
        ),
    ];
    for (contract, path, request, information) in requests {
        let response = muster.client().post(path, &request).await.json();
        let response = response.get("data").unwrap_or(&response);
        let claims = claims(response["token"].as_str().unwrap()).unwrap();
        let id = response["user"]["_id"].clone();
        let iat = claims["iat"].as_i64().unwrap();
        let mut expected = information;
        expected["sub"] = id.clone();
        expected["_id"] = id;
        expected["contract"] = json!(contract);
        expected["iat"] = json!(iat);
        expected["exp"] = json!(iat + 86_400);
        assert_eq!(claims, expected);
    }
}
