//! The consumer: takes a message, does what it asks, and settles it. Knows no HTTP.

mod consume;
mod outage;
mod profile;
mod register;
mod settle;

use std::sync::Arc;

use crate::password::Slots;
use crate::queue::seal::Opener;
use crate::queue::{Kind, Message, Prefetch, Reason};
use crate::signup::{Clock, FailureCode, Outcome};
use crate::store::Store;
use crate::token::Signer;

pub use consume::consume;

/// Everything a registration needs.
pub struct Worker {
    /// Where users are kept.
    pub store: Arc<dyn Store>,
    /// Where passwords are hashed.
    pub slots: Slots,
    /// Who opens sealed passwords.
    pub opener: Opener,
    /// Who signs tokens.
    pub signer: Signer,
    /// What time it is.
    pub clock: Clock,
}

impl Worker {
    /// What to hold at once: enough that the hash slots never run dry, and no more, so that the
    /// next worker gets the rest. `fixed` overrides it unless 0.
    pub fn prefetch(&self, fixed: u16) -> Prefetch {
        let slots = u16::try_from(self.slots.capacity()).unwrap_or(u16::MAX);
        let held = if fixed == 0 { (slots * 2).clamp(4, 2000) } else { fixed };
        Prefetch { interactive: held, bulk: held, profile: 64 }
    }

    /// Does what a message asks. An error is why it cannot be asked that.
    async fn handle(&self, message: &Message) -> Result<Outcome, Reason> {
        if message.is_expired() {
            return Ok(FailureCode::Expired.into());
        }
        match message.kind {
            Kind::Register(contract) => self.register(message, contract).await,
            Kind::Profile => self.profile(message).await,
        }
    }
}
