//! Tokens: signed and verified by workers only. The first key signs; all of them verify, so that one
//! can take over from another without a token being refused.

pub mod key;
mod secret;

use std::time::Duration;

use jsonwebtoken::{Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::domain::{Clock, ContractId, Millis, User, UserId};

pub use key::TokenKey;
pub use secret::{load, load_or_create};

/// How long after its creation a registration that is repeated still gets a token.
pub const REPLAY_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// Signs with its first key and verifies with all.
pub struct Signer {
    signing: TokenKey,
    others: Vec<TokenKey>,
    claim_rules: ClaimRules,
    clock: Clock,
}

/// What every token says, and must say to be taken.
#[derive(Clone, Debug, Default)]
pub struct ClaimRules {
    /// How long a token is valid.
    pub lifetime: Duration,
    /// Who signed it (`iss`); none: not said, and not asked for.
    pub issuer: Option<String>,
    /// For whom (`aud`); none: not said, and not asked for.
    pub audience: Option<String>,
}

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: UserId,
    /// The same, under the name the documents' clients read.
    #[serde(rename = "_id")]
    id: UserId,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    /// One audience is written as a text (RFC 7519, 4.1.3).
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<String>,
    contract: ContractId,
    /// `username` promises "the user's information"; the other contracts do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
}

/// Missing, malformed, expired or forged: which one is nobody's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid token")]
pub struct Unauthorized;

impl Signer {
    /// A signer that signs with `signing`, and takes what the others have signed too.
    pub fn new(signing: TokenKey, others: Vec<TokenKey>, claim_rules: ClaimRules, clock: Clock) -> Self {
        Self { signing, others, claim_rules, clock }
    }

    fn keys(&self) -> impl Iterator<Item = &TokenKey> {
        std::iter::once(&self.signing).chain(&self.others)
    }

    /// The public halves of its keys as a JWK set (RFC 7517, 5); nothing where there is only a secret.
    pub fn public_keys(&self) -> Option<Value> {
        public_keys(self.keys())
    }

    /// A token for a user, valid from now.
    pub fn sign(&self, user: &User) -> Option<String> {
        let now = self.clock.now().seconds();
        let informed = user.contract == ContractId::Username;
        let claims = Claims {
            sub: user.id,
            id: user.id,
            iat: now,
            exp: now + i64::try_from(self.claim_rules.lifetime.as_secs()).unwrap_or(i64::MAX / 2),
            iss: self.claim_rules.issuer.clone(),
            aud: self.claim_rules.audience.clone(),
            contract: user.contract,
            username: user.username.clone().filter(|_| informed),
            email: user.email.clone().filter(|_| informed),
        };
        match self.signing.sign(&claims) {
            Ok(token) => Some(token),
            Err(error) => {
                tracing::error!(%error, "a token could not be signed");
                None
            }
        }
    }

    /// A token for a registration that is repeated, while that is still allowed.
    pub fn sign_replay(&self, user: &User) -> Option<String> {
        let Millis(age) = Millis(self.clock.now().0 - user.created_at.0);
        let fresh = u128::try_from(age).map_or(true, |age| age <= REPLAY_WINDOW.as_millis());
        if fresh { self.sign(user) } else { None }
    }

    /// Whose token it is.
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
    /// What a token of this key must be like.
    fn validation(&self, key: &TokenKey) -> Validation {
        let mut validation = Validation::new(key.algorithm().jwa());
        let mut required = vec!["exp"];
        // The expiry is checked against the signer's own clock.
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
    /// Whether a token with this header can be its own. The key's kind decides how it is verified,
    /// never the token alone.
    fn matches(&self, header: &Header) -> bool {
        let named = self.id().is_none() || self.id() == header.kid.as_deref();
        header.alg == self.algorithm().jwa() && named
    }
}

/// The public halves of keys as a JWK set; nothing where none of them has one.
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

    fn a_day() -> ClaimRules {
        ClaimRules { lifetime: Duration::from_secs(86_400), ..ClaimRules::default() }
    }

    fn signer(clock: Clock) -> Signer {
        Signer::new(secret("0123456789abcdef0123456789abcdef"), Vec::new(), a_day(), clock)
    }

    fn made(algorithm: key::SigningAlgorithm) -> String {
        key::generate(algorithm).unwrap().to_string()
    }

    #[test]
    fn a_token_names_its_user_until_it_expires() {
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
    fn forged_tokens_are_refused() {
        let (clock, _) = Clock::fixed(Millis(1_000_000));
        let signer = signer(clock.clone());
        let token = signer.sign(&user(ContractId::Register)).unwrap();
        let other =
            Signer::new(secret("another secret, but just as long"), Vec::new(), a_day(), clock);
        assert_eq!(other.verify(&token), Err(Unauthorized));
        let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.";
        for bad in ["", "x", unsigned, &token[..token.len() - 1]] {
            assert_eq!(signer.verify(bad), Err(Unauthorized), "{bad}");
        }
    }

    #[test]
    fn only_the_username_contract_tells_about_the_user() {
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
            let told = claims.get("username").is_some() && claims.get("email").is_some();
            assert_eq!(told, contract == ContractId::Username, "{contract}");
        }
    }

    #[test]
    fn keys_follow_each_other_without_a_token_refused() {
        let (clock, _) = Clock::fixed(Millis(1_000_000));
        let user = user(ContractId::Register);
        let shared = "0123456789abcdef0123456789abcdef";
        let mut token = signer(clock.clone()).sign(&user).unwrap();
        let mut old = vec![];
        for algorithm in key::SigningAlgorithm::PUBLIC {
            let pem = made(algorithm);
            let others = old.iter().map(|pem: &String| TokenKey::from_pem(pem).unwrap());
            let others = others.chain([secret(shared)]).collect();
            let signing = TokenKey::from_pem(&pem).unwrap();
            let signer = Signer::new(signing, others, a_day(), clock.clone());
            assert_eq!(signer.verify(&token), Ok(user.id), "of the key before {algorithm:?}");
            token = signer.sign(&user).unwrap();
            assert_eq!(signer.verify(&token), Ok(user.id), "{algorithm:?}");
            let alone = Signer::new(secret(shared), Vec::new(), a_day(), clock.clone());
            assert_eq!(alone.verify(&token), Err(Unauthorized), "{algorithm:?}");
            old.push(pem);
            assert_eq!(signer.public_keys().unwrap()["keys"].as_array().unwrap().len(), old.len());
        }
    }

    #[test]
    fn a_public_key_is_no_secret() {
        let (clock, _) = Clock::fixed(Millis(1_000_000));
        let key = TokenKey::from_pem(&made(key::SigningAlgorithm::EdDsa)).unwrap();
        let kid = key.id().map(str::to_owned);
        let public = BASE64.decode(key.public_jwk().unwrap()["x"].as_str().unwrap()).unwrap();
        let signer = Signer::new(key, Vec::new(), a_day(), clock);
        let forged = EncodingKey::from_secret(&public);
        let claims = json!({ "sub": UserId::generate(), "exp": 9_999_999_999_i64 });
        for alg in [jsonwebtoken::Algorithm::HS256, jsonwebtoken::Algorithm::HS512] {
            let header = Header { kid: kid.clone(), ..Header::new(alg) };
            let token = jsonwebtoken::encode(&header, &claims, &forged).unwrap();
            assert_eq!(signer.verify(&token), Err(Unauthorized));
        }
    }

    #[test]
    fn issuer_and_audience_are_said_and_asked_for() {
        let (clock, _) = Clock::fixed(Millis(1_000_000));
        let user = user(ContractId::Register);
        let with = |issuer: Option<&str>, audience: Option<&str>| {
            let [issuer, audience] = [issuer, audience].map(|text| text.map(str::to_owned));
            let claim_rules = ClaimRules { issuer, audience, ..a_day() };
            let key = secret("0123456789abcdef0123456789abcdef");
            Signer::new(key, Vec::new(), claim_rules, clock.clone())
        };
        let (silent, both) = (with(None, None), with(Some("us"), Some("them")));
        let token = both.sign(&user).unwrap();
        assert_eq!(both.verify(&token), Ok(user.id));
        assert_eq!(silent.verify(&token), Ok(user.id), "asks for nothing");
        for (issuer, audience) in [("others", "them"), ("us", "others")] {
            assert_eq!(with(Some(issuer), Some(audience)).verify(&token), Err(Unauthorized));
        }
        assert_eq!(both.verify(&silent.sign(&user).unwrap()), Err(Unauthorized));
    }
}
