//! Tokens: signed and verified by workers only.

mod secret;

use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::signup::{Clock, ContractId, Millis, User, UserId};

pub use secret::made_once;

/// How long after its creation a registration that is repeated still gets a token.
pub const REPLAY_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// Signs and verifies with one secret.
pub struct Signer {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    lifetime: Duration,
    clock: Clock,
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
    /// A signer whose tokens are valid for `lifetime`.
    pub fn new(secret: &SecretString, lifetime: Duration, clock: Clock) -> Self {
        let secret = secret.expose_secret().as_bytes();
        let mut validation = Validation::new(Algorithm::HS256);
        // The expiry is checked against this signer's own clock.
        validation.validate_exp = false;
        Self {
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
            validation,
            lifetime,
            clock,
        }
    }

    /// A token for a user, valid from now.
    pub fn sign(&self, user: &User) -> Option<String> {
        let now = self.clock.now().seconds();
        let informed = user.contract == ContractId::Username;
        let claims = Claims {
            sub: user.id,
            id: user.id,
            iat: now,
            exp: now + i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX / 2),
            contract: user.contract,
            username: user.username.clone().filter(|_| informed),
            email: user.email.clone().filter(|_| informed),
        };
        match jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding) {
            Ok(token) => Some(token),
            Err(error) => {
                tracing::error!(%error, "a token could not be signed");
                None
            }
        }
    }

    /// A token for a registration that is repeated, while that is still allowed.
    pub fn sign_again(&self, user: &User) -> Option<String> {
        let Millis(age) = Millis(self.clock.now().0 - user.created_at.0);
        let fresh = u128::try_from(age).map_or(true, |age| age <= REPLAY_WINDOW.as_millis());
        if fresh { self.sign(user) } else { None }
    }

    /// Whose token it is.
    pub fn verify(&self, token: &str) -> Result<UserId, Unauthorized> {
        let data = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation)
            .map_err(|_| Unauthorized)?;
        if data.claims.exp <= self.clock.now().seconds() {
            return Err(Unauthorized);
        }
        Ok(data.claims.sub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

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

    fn signer(clock: Clock) -> Signer {
        let secret = SecretString::from("0123456789abcdef0123456789abcdef");
        Signer::new(&secret, Duration::from_secs(86_400), clock)
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
        assert!(signer.sign_again(&user).is_some());
        hand.store(1_000_000 + 86_400_001, Ordering::SeqCst);
        assert!(signer.sign_again(&user).is_none());
    }

    #[test]
    fn forged_tokens_are_refused() {
        let (clock, _) = Clock::fixed(Millis(1_000_000));
        let signer = signer(clock.clone());
        let token = signer.sign(&user(ContractId::Register)).unwrap();
        let secret = SecretString::from("another secret, but just as long");
        let other = Signer::new(&secret, Duration::from_secs(60), clock);
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
                &signer.decoding,
                &signer.validation,
            );
            let claims = data.unwrap().claims;
            assert_eq!(claims["sub"], claims["_id"]);
            assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 86_400);
            let told = claims.get("username").is_some() && claims.get("email").is_some();
            assert_eq!(told, contract == ContractId::Username, "{contract}");
        }
    }
}
