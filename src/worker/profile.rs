//! Whose token is it? The front holds no key, so it asks here.

use super::Worker;
use crate::queue::seal::NotOpened;
use crate::queue::{Message, Reason};
use crate::signup::{FailureCode, Outcome, RejectionCode};

impl Worker {
    /// Verifies the token in the body and reads its user.
    pub(super) async fn profile(&self, message: &Message) -> Result<Outcome, Reason> {
        let token = match self.opener.open_token(message, self.clock.now()) {
            Ok(token) => token,
            Err(NotOpened::UnknownKey) => return Ok(FailureCode::UnknownKey.into()),
            Err(NotOpened::Bad(_) | NotOpened::Clear) if message.sealed.is_some() => {
                return Err(Reason::BadSeal);
            }
            Err(_) => return Err(Reason::Unreadable),
        };
        let Ok(id) = self.signer.verify(&token) else {
            return Ok(RejectionCode::Unauthorized.into());
        };
        Ok(match self.store.user(id).await {
            Ok(Some(user)) => Outcome::Found { user },
            Ok(None) => RejectionCode::Unauthorized.into(),
            Err(_) => FailureCode::StoreUnavailable.into(),
        })
    }
}
