//! Reads `[token]`: the signing keys and the claims.

use std::path::PathBuf;

use secrecy::SecretString;

use super::SettingsReader;
use crate::config::TokenSettings;

/// Minimum length of the HS256 secret, in bytes: the length of the digest (RFC 7518, 3.2).
const SECRET_MIN: usize = 32;

impl SettingsReader<'_> {
    pub(super) fn token(&mut self) -> Option<TokenSettings> {
        let secret = self.text("token.secret");
        if self.is_worker && !secret.is_empty() && secret.len() < SECRET_MIN {
            self.problem::<()>(
                "token.secret",
                "expected at least 32 bytes; make a secret with: openssl rand -base64 48",
            );
        }
        let lifetime = self.duration("token.lifetime");
        let secret = (!secret.is_empty()).then(|| SecretString::from(secret));
        Some(TokenSettings {
            secret,
            key_files: self.list("token.key_files").into_iter().map(PathBuf::from).collect(),
            issuer: self.non_empty_text("token.issuer"),
            audience: self.non_empty_text("token.audience"),
            lifetime: lifetime?,
        })
    }
}
