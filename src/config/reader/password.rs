//! Reads `[password]`: hashing and the password policy.

use super::SettingsReader;
use crate::config::{Blocklist, PasswordPolicy, PasswordSettings};

/// Minimum safe bcrypt cost (OWASP Password Storage Cheat Sheet).
const COST_MIN: i64 = 10;
/// Costs that bcrypt defines.
const COST_RANGE: std::ops::RangeInclusive<i64> = 4..=31;
/// Maximum of `password.min_length`. Passwords of 64 characters must be allowed (NIST SP 800-63B,
/// 3.1.1), and bcrypt accepts 72 bytes.
const MIN_LENGTH_MAX: i64 = 64;

impl SettingsReader<'_> {
    pub(super) fn password(&mut self) -> Option<PasswordSettings> {
        let weak = self.flag("password.allow_weak_cost");
        let cost = self.number("password.cost", COST_RANGE)?;
        if self.is_worker && cost < COST_MIN && !weak {
            self.problem::<()>(
                "password.cost",
                &format!(
                    "expected at least {COST_MIN}, got {cost}; tests and benchmarks can set \
                     MUSTER_ALLOW_WEAK_COST=1"
                ),
            );
        }
        let threads = self.number("password.threads", 0..=1024)? as usize;
        let lanes = self.number("password.lanes", 0..=8)? as usize;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Some(PasswordSettings {
            cost: cost as u32,
            threads: if threads == 0 { cores } else { threads },
            lanes: (lanes != 0).then_some(lanes),
        })
    }

    pub(super) fn password_policy(&mut self) -> Option<PasswordPolicy> {
        let min_length = self.number("password.min_length", 0..=MIN_LENGTH_MAX);
        let blocklist = self.blocklist();
        Some(PasswordPolicy { min_length: min_length? as u64, blocklist: blocklist? })
    }

    fn blocklist(&mut self) -> Option<Blocklist> {
        let key = "password.blocklist";
        let text = self.text(key);
        match (text.as_str(), text.strip_prefix("file:")) {
            ("none", _) => Some(Blocklist::None),
            ("common", _) => Some(Blocklist::Common),
            (_, Some(path)) if !path.is_empty() => Some(Blocklist::File(path.into())),
            _ => self.expected(key, "none, common or file:PATH"),
        }
    }
}
