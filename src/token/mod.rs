//! Signs and verifies the users' tokens (JWT). Only workers do so.
//!
//! The first key signs, and all keys verify. Keys can therefore be rotated without rejecting a token.

pub mod key;
mod secret;

use std::time::Duration;

use jsonwebtoken::{Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::domain::{Clock, ContractId, Millis, User, UserId};

pub use key::TokenKey;
pub use secret::{load, load_or_create};

/// How long after the registration a replay still gets a token.
pub const REPLAY_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// Signs with the first key and verifies with all keys.
pub struct Signer {
    signing: TokenKey,
    others: Vec<TokenKey>,
    claim_rules: ClaimRules,
    clock: Clock,
}

/// The claims that new tokens get and that presented tokens must have.
#[derive(Clone, Debug, Default)]
pub struct ClaimRules {
    /// How long a token is valid.
    pub lifetime: Duration,
    /// The issuer (`iss`). `None`: not set and not required.
    pub issuer: Option<String>,
    /// The audience (`aud`). `None`: not set and not required.
    pub audience: Option<String>,
}

/// The claims of a token.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: UserId,
    /// The user id again, under the name that clients of the published documents read.
    #[serde(rename = "_id")]
    id: UserId,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    /// A single audience is a string, not an array (RFC 7519, 4.1.3).
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<String>,
    contract: ContractId,
    /// Only for the contract `username`, whose document promises "the user's information".
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    /// As `username`.
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
}

/// The token is malformed, expired or forged. Clients must not learn which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid token")]
pub struct Unauthorized;

impl Signer {
    /// Creates a signer that signs with `signing` and also accepts tokens of `others`.
    pub fn new(
        signing: TokenKey,
        others: Vec<TokenKey>,
        claim_rules: ClaimRules,
        clock: Clock,
    ) -> Self {
        Self { signing, others, claim_rules, clock }
    }

    fn keys(&self) -> impl Iterator<Item = &TokenKey> {
        std::iter::once(&self.signing).chain(&self.others)
    }

    /// Returns the public keys as a JWK set (RFC 7517, 5). `None` if there is only a secret.
    pub fn public_keys(&self) -> Option<Value> {
        public_keys(self.keys())
    }

    /// Returns a token that is valid from now. `None` if signing failed, which is logged.
    pub fn sign(&self, user: &User) -> Option<String> {
        let now = self.clock.now().seconds();
        let has_user_data = user.contract == ContractId::Username;
        let claims = Claims {
            sub: user.id,
            id: user.id,
            iat: now,
            exp: now + i64::try_from(self.claim_rules.lifetime.as_secs()).unwrap_or(i64::MAX / 2),
            iss: self.claim_rules.issuer.clone(),
            aud: self.claim_rules.audience.clone(),
            contract: user.contract,
            username: user.username.clone().filter(|_| has_user_data),
            email: user.email.clone().filter(|_| has_user_data),
        };
        match self.signing.sign(&claims) {
            Ok(token) => Some(token),
            Err(error) => {
                tracing::error!(event = "token_signing_failed", %error, "signing a token failed");
                None
            }
        }
    }

    /// Returns a token for a replayed registration. `None` if the registration is older than
    /// [`REPLAY_WINDOW`] or signing failed.
    pub fn sign_replay(&self, user: &User) -> Option<String> {
        let Millis(age) = Millis(self.clock.now().0 - user.created_at.0);
        let is_recent = u128::try_from(age).map_or(true, |age| age <= REPLAY_WINDOW.as_millis());
        if is_recent { self.sign(user) } else { None }
    }

    /// Verifies a token and returns its user.
    ///
    /// # Errors
    /// If the token is malformed, expired or forged, or lacks a required claim.
    pub fn verify(&self, token: &str) -> Result<UserId, Unauthorized> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Unauthorized)?;
        let key = self.keys().find(|key| key.matches(&header)).ok_or(Unauthorized)?;
        let validation = self.claim_rules.validation(key);
        let data = jsonwebtoken::decode::<Claims>(token, &key.verifying, &validation)
            .map_err(|_| Unauthorized)?;
        if data.claims.exp <= self.clock.now().seconds() {
            return Err(Unauthorized);
        }
        Ok(data.claims.sub)
    }
}

impl ClaimRules {
    /// Returns the rules for a token signed with this key.
    fn validation(&self, key: &TokenKey) -> Validation {
        let mut validation = Validation::new(key.algorithm().jwa());
        let mut required = vec!["exp"];
        // `verify` checks the expiry against the signer's clock.
        validation.validate_exp = false;
        validation.validate_aud = self.audience.is_some();
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

impl TokenKey {
    /// Whether this key can have signed a token with this header. The algorithm must be the key's own:
    /// the token alone must not choose how it is verified.
    fn matches(&self, header: &Header) -> bool {
        let has_key_id = self.id().is_none() || self.id() == header.kid.as_deref();
        header.alg == self.algorithm().jwa() && has_key_id
    }
}

/// Returns the public keys as a JWK set. `None` if no key has a public key.
pub fn public_keys<'a>(keys: impl Iterator<Item = &'a TokenKey>) -> Option<Value> {
    let keys: Vec<Value> = keys.filter_map(TokenKey::public_jwk).collect();
    (!keys.is_empty()).then(|| json!({ "keys": keys }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
    use jsonwebtoken::EncodingKey;
    use secrecy::SecretString;

    fn user(contract: ContractId) -> User {
        User {
            id: UserId::generate(),
            contract,
            username: Some("ann".into()),
            email: Some("ann@example.com".into()),
            fullname: None,
            created_at: Millis(1_000_000),
            updated_at: Millis(1_000_000),
        }
    }

    fn secret(text: &str) -> TokenKey {
        TokenKey::secret(&SecretString::from(text))
    }

    fn one_day() -> ClaimRules {
        ClaimRules { lifetime: Duration::from_secs(86_400), ..ClaimRules::default() }
    }

    fn signer(clock: Clock) -> Signer {
        Signer::new(secret("0123456789abcdef0123456789abcdef"), Vec::new(), one_day(), clock)
    }

    fn generated(algorithm: key::SigningAlgorithm) -> String {
        key::generate(algorithm).unwrap().to_string()
    }

    #[test]
    fn token_is_valid_until_it_expires() {
        let (clock, hand) = Clock::fixed(Millis(1_000_000));
        let signer = signer(clock);
        let user = user(ContractId::Register);
        let token = signer.sign(&user).unwrap();
        assert_eq!(signer.verify(&token), Ok(user.id));
        hand.store(1_000_000 + 86_400_000, Ordering::SeqCst);
        assert_eq!(signer.verify(&token), Err(Unauthorized));
        assert!(signer.sign_replay(&user).is_some());
        hand.store(1_000_000 + 86_400_001, Ordering::SeqCst);
        assert!(signer.sign_replay(&user).is_none());
    }

    #[test]
    fn forged_token_is_rejected() {
        let (clock, _) = Clock::fixed(Millis(1_000_000));
        let signer = signer(clock.clone());
        let token = signer.sign(&user(ContractId::Register)).unwrap();
        let other =
            Signer::new(secret("another secret, but just as long"), Vec::new(), one_day(), clock);
        assert_eq!(other.verify(&token), Err(Unauthorized));
        let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.";
        for bad in ["", "x", unsigned, &token[..token.len() - 1]] {
            assert_eq!(signer.verify(bad), Err(Unauthorized), "{bad}");
        }
    }

    #[test]
    fn only_tokens_of_the_username_contract_contain_user_data() {
        let (clock, _) = Clock::fixed(Millis(1_000_000));
        let signer = signer(clock);
        for contract in ContractId::ALL {
            let token = signer.sign(&user(contract)).unwrap();
            let data = jsonwebtoken::decode::<serde_json::Value>(
                &token,
                &signer.signing.verifying,
                &signer.claim_rules.validation(&signer.signing),
            );
            let claims = data.unwrap().claims;
            assert_eq!(claims["sub"], claims["_id"]);
            assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 86_400);
            let has_data = claims.get("username").is_some() && claims.get("email").is_some();
            assert_eq!(has_data, contract == ContractId::Username, "{contract}");
        }
    }

    #[test]
    fn tokens_of_previous_keys_stay_valid() {
        let (clock, _) = Clock::fixed(Millis(1_000_000));
        let user = user(ContractId::Register);
        let shared = "0123456789abcdef0123456789abcdef";
        let mut token = signer(clock.clone()).sign(&user).unwrap();
        let mut old = vec![];
        for algorithm in key::SigningAlgorithm::PUBLIC {
            let pem = generated(algorithm);
            let others = old.iter().map(|pem: &String| TokenKey::from_pem(pem).unwrap());
            let others = others.chain([secret(shared)]).collect();
            let signing = TokenKey::from_pem(&pem).unwrap();
            let signer = Signer::new(signing, others, one_day(), clock.clone());
            assert_eq!(signer.verify(&token), Ok(user.id), "token of the key before {algorithm:?}");
            token = signer.sign(&user).unwrap();
            assert_eq!(signer.verify(&token), Ok(user.id), "{algorithm:?}");
            let alone = Signer::new(secret(shared), Vec::new(), one_day(), clock.clone());
            assert_eq!(alone.verify(&token), Err(Unauthorized), "{algorithm:?}");
            old.push(pem);
            assert_eq!(signer.public_keys().unwrap()["keys"].as_array().unwrap().len(), old.len());
        }
    }

    #[test]
    fn public_key_does_not_verify_as_an_hmac_secret() {
        let (clock, _) = Clock::fixed(Millis(1_000_000));
        let key = TokenKey::from_pem(&generated(key::SigningAlgorithm::EdDsa)).unwrap();
        let kid = key.id().map(str::to_owned);
        let public = BASE64.decode(key.public_jwk().unwrap()["x"].as_str().unwrap()).unwrap();
        let signer = Signer::new(key, Vec::new(), one_day(), clock);
        let forged = EncodingKey::from_secret(&public);
        let claims = json!({ "sub": UserId::generate(), "exp": 9_999_999_999_i64 });
        for alg in [jsonwebtoken::Algorithm::HS256, jsonwebtoken::Algorithm::HS512] {
            let header = Header { kid: kid.clone(), ..Header::new(alg) };
            let token = jsonwebtoken::encode(&header, &claims, &forged).unwrap();
            assert_eq!(signer.verify(&token), Err(Unauthorized));
        }
    }

    #[test]
    fn issuer_and_audience_are_set_and_required() {
        let (clock, _) = Clock::fixed(Millis(1_000_000));
        let user = user(ContractId::Register);
        let with = |issuer: Option<&str>, audience: Option<&str>| {
            let [issuer, audience] = [issuer, audience].map(|text| text.map(str::to_owned));
            let claim_rules = ClaimRules { issuer, audience, ..one_day() };
            let key = secret("0123456789abcdef0123456789abcdef");
            Signer::new(key, Vec::new(), claim_rules, clock.clone())
        };
        let (neither, both) = (with(None, None), with(Some("us"), Some("them")));
        let token = both.sign(&user).unwrap();
        assert_eq!(both.verify(&token), Ok(user.id));
        assert_eq!(neither.verify(&token), Ok(user.id), "requires no claim");
        for (issuer, audience) in [("others", "them"), ("us", "others")] {
            assert_eq!(with(Some(issuer), Some(audience)).verify(&token), Err(Unauthorized));
        }
        assert_eq!(both.verify(&neither.sign(&user).unwrap()), Err(Unauthorized));
    }
}
