//! Findings of `muster doctor`: severity, reason and remedy. `queue` and `store` inspect their services and return
//! findings; the command adds its own and prints all.

use serde::Serialize;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// No problem.
    Ok,
    /// Worth knowing; no action is required.
    Note,
    /// Works, but will fail under load, after a failure or under attack.
    Warning,
    /// Does not work, or loses data.
    Error,
}

impl Severity {
    /// Name in the output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Result of one check. Contains no secret.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Severity.
    pub severity: Severity,
    /// Stable name of the check.
    pub check: &'static str,
    /// The observation, and why it matters.
    pub reason: String,
    /// The recommended action. `None` if there is no problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// A check without a problem.
    pub fn ok(check: &'static str, reason: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, check, reason: reason.into(), remedy: None }
    }

    /// A note.
    pub fn note(check: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::with(Severity::Note, check, reason, remedy)
    }

    /// A warning.
    pub fn warning(
        check: &'static str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::with(Severity::Warning, check, reason, remedy)
    }

    /// An error.
    pub fn error(
        check: &'static str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::with(Severity::Error, check, reason, remedy)
    }

    /// A finding with any severity.
    pub fn with(
        severity: Severity,
        check: &'static str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { severity, check, reason: reason.into(), remedy: Some(remedy.into()) }
    }
}
