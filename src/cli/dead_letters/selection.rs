//! Selection of dead letters by filters, by ids, or all.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::visit_selected;
use crate::domain::{ContractId, Millis};
use crate::queue::DeadLetters;
use crate::queue::dead_letters::{DeadLetter, REASONS};

#[derive(Clone, Debug, Default, Args)]
pub(super) struct Filters {
    /// Only dead letters with this reason; repeatable.
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(REASONS))]
    reason: Vec<String>,
    /// Only dead letters of this contract.
    #[arg(long, value_name = "NAME")]
    contract: Option<ContractId>,
    /// Only those dead-lettered longer ago than this, such as 10m or 24h.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// At most this many, oldest first.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Conditions that a dead letter must meet.
#[derive(Debug)]
pub(super) struct Selection {
    filters: Filters,
    now: Millis,
    /// Complete ids. `None`: any id.
    ids: Option<BTreeSet<String>>,
}

impl Selection {
    pub(super) fn new(filters: Filters, now: Millis) -> Self {
        Self { filters, now, ids: None }
    }

    /// Restricts the selection to ids, each given in full or as a prefix, and returns the ids that no dead letter has.
    /// Reads all dead letters. Returns an error if a prefix matches several ids.
    pub(super) async fn with_ids(
        mut self,
        dead_letters: &mut DeadLetters,
        given: &[String],
    ) -> anyhow::Result<(Self, Vec<String>)> {
        let mut existing = BTreeSet::new();
        let all = Self::new(Filters::default(), self.now);
        visit_selected(dead_letters, &all, |dead_letter| {
            existing.insert(dead_letter.id);
            Ok(())
        })
        .await?;
        let (mut ids, mut missing) = (BTreeSet::new(), Vec::new());
        for id in given {
            match resolve(&existing, id)? {
                Some(full) => _ = ids.insert(full.to_owned()),
                None => missing.push(id.clone()),
            }
        }
        self.ids = Some(ids);
        Ok((self, missing))
    }

    /// Restricts the selection to these dead letters, which the user may have confirmed. Limits their number too,
    /// because several may have the same id.
    pub(super) fn only(mut self, dead_letters: &[DeadLetter]) -> Self {
        self.ids = Some(dead_letters.iter().map(|dead_letter| dead_letter.id.clone()).collect());
        self.filters.limit = Some(dead_letters.len());
        self
    }

    /// Returns whether this number reaches the limit.
    pub(super) fn is_full(&self, count: usize) -> bool {
        self.filters.limit.is_some_and(|limit| count >= limit)
    }

    /// Returns whether the dead letter meets all conditions.
    pub(super) fn matches(&self, dead_letter: &DeadLetter) -> bool {
        let Filters { reason, contract, older_than, limit: _ } = &self.filters;
        let id_matches = self.ids.as_ref().is_none_or(|ids| ids.contains(&dead_letter.id));
        let reason_matches =
            reason.is_empty() || reason.iter().any(|reason| reason == dead_letter.reason);
        let contract_matches = contract.is_none() || dead_letter.contract == *contract;
        // An unknown age does not match.
        let age_matches = older_than.is_none_or(|least| age(dead_letter, self.now) >= Some(least));
        id_matches && reason_matches && contract_matches && age_matches
    }

    /// Returns the suffix of the message for an empty result.
    pub(super) fn description(&self) -> &'static str {
        let Filters { reason, contract, older_than, limit: _ } = &self.filters;
        let is_unfiltered = reason.is_empty() && contract.is_none() && older_than.is_none();
        if is_unfiltered { "" } else { " match the filters" }
    }
}

/// Returns the time since dead-lettering, if it is known. Zero if this clock is behind the worker's.
pub(super) fn age(dead_letter: &DeadLetter, now: Millis) -> Option<Duration> {
    dead_letter
        .dead_lettered_at
        .map(|time| Duration::from_millis(u64::try_from(now.0 - time.0).unwrap_or(0)))
}

/// Returns the id that equals `given` or is the only one with this prefix. Returns an error if several have it.
fn resolve<'a>(existing: &'a BTreeSet<String>, given: &str) -> anyhow::Result<Option<&'a str>> {
    if given.is_empty() {
        bail!(
            "expected an id, got an empty text; select dead letters without an id with --reason or --all"
        );
    }
    if let Some(full) = existing.get(given) {
        return Ok(Some(full));
    }
    let mut matching = existing.iter().filter(|id| id.starts_with(given));
    match (matching.next(), matching.count()) {
        (first, 0) => Ok(first.map(String::as_str)),
        (_, more) => bail!(
            "{given}: {} dead letters have this id prefix, and nothing was done; give a longer prefix \
             (`muster dead-letters list --json` prints full ids)",
            more + 1
        ),
    }
}

/// The error for an id that no dead letter has.
pub(super) fn not_found(id: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{id}: no dead letter has this id or prefix; `muster dead-letters list` prints the ids"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::dead_letters::format::tests::sample;

    #[test]
    fn unique_prefix_selects_an_id() {
        let existing: BTreeSet<String> = ["row-1", "row-10", "abc"].map(str::to_owned).into();
        assert_eq!(resolve(&existing, "a").unwrap(), Some("abc"));
        assert_eq!(resolve(&existing, "row-1").unwrap(), Some("row-1"), "an exact match wins");
        assert_eq!(resolve(&existing, "x").unwrap(), None);
        assert!(resolve(&existing, "row").unwrap_err().to_string().contains("2 dead letters"));
        assert!(resolve(&existing, "").is_err());
    }

    #[test]
    fn all_filters_must_match() {
        let matches = |filters: Filters| Selection::new(filters, Millis(60_000)).matches(&sample());
        let filters = || Filters {
            reason: vec!["poison".into(), "expired".into()],
            contract: Some(ContractId::Register),
            older_than: Some(Duration::from_secs(60)),
            limit: None,
        };
        assert!(matches(Filters::default()));
        assert!(matches(filters()));
        assert!(!matches(Filters { reason: vec!["poison".into()], ..filters() }));
        assert!(!matches(Filters { contract: Some(ContractId::Username), ..filters() }));
        assert!(!matches(Filters { older_than: Some(Duration::from_secs(61)), ..filters() }));
        let unknown = DeadLetter { dead_lettered_at: None, ..sample() };
        assert!(!Selection::new(filters(), Millis(60_000)).matches(&unknown), "unknown age");
    }
}
