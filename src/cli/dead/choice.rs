//! Which letters a `dead` command is about: filters on the command line, ids, or all.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::look;
use crate::queue::DeadLetters;
use crate::queue::dead_letters::{DeadLetter, REASONS};
use crate::domain::{ContractId, Millis};

#[derive(Clone, Debug, Default, Args)]
pub(super) struct Filters {
    /// Only letters that died of this; may be given more than once.
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(REASONS))]
    reason: Vec<String>,
    /// Only letters under this contract.
    #[arg(long, value_name = "NAME")]
    contract: Option<ContractId>,
    /// Only letters that died longer ago than this, such as 10m or 24h.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// At most so many, the oldest first.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Which letters are meant.
#[derive(Debug)]
pub(super) struct Choice {
    filters: Filters,
    now: Millis,
    /// Whole ids; none: any.
    ids: Option<BTreeSet<String>>,
}

impl Choice {
    pub(super) fn new(filters: Filters, now: Millis) -> Self {
        Self { filters, now, ids: None }
    }

    /// Among those, the letters with these ids, each given whole or by its beginning. With the ids
    /// that no letter has. Looks at all letters first, so that a beginning that means several is
    /// refused before anything is done.
    pub(super) async fn of_ids(
        mut self,
        letters: &mut DeadLetters,
        given: &[String],
    ) -> anyhow::Result<(Self, Vec<String>)> {
        let mut there = BTreeSet::new();
        let all = Self::new(Filters::default(), self.now);
        look(letters, &all, |letter| {
            there.insert(letter.id);
            Ok(())
        })
        .await?;
        let (mut ids, mut missing) = (BTreeSet::new(), Vec::new());
        for id in given {
            match resolve(&there, id)? {
                Some(whole) => _ = ids.insert(whole.to_owned()),
                None => missing.push(id.clone()),
            }
        }
        self.ids = Some(ids);
        Ok((self, missing))
    }

    /// Of these only: somebody may have been asked about them. As many, because several may have one id.
    pub(super) fn only(mut self, letters: &[DeadLetter]) -> Self {
        self.ids = Some(letters.iter().map(|letter| letter.id.clone()).collect());
        self.filters.limit = Some(letters.len());
        self
    }

    /// Whether so many are enough.
    pub(super) fn is_full(&self, taken: usize) -> bool {
        self.filters.limit.is_some_and(|limit| taken >= limit)
    }

    /// Whether this letter is meant.
    pub(super) fn takes(&self, letter: &DeadLetter) -> bool {
        let Filters { reason, contract, older_than, limit: _ } = &self.filters;
        let id_fits = self.ids.as_ref().is_none_or(|ids| ids.contains(&letter.id));
        let reason_fits = reason.is_empty() || reason.iter().any(|reason| reason == letter.reason);
        let contract_fits = contract.is_none() || letter.contract == *contract;
        // One whose age nobody knows is not known to be old.
        let age_fits = older_than.is_none_or(|least| age(letter, self.now) >= Some(least));
        id_fits && reason_fits && contract_fits && age_fits
    }

    /// Whether it leaves anything out.
    pub(super) fn told(&self) -> &'static str {
        let Filters { reason, contract, older_than, limit: _ } = &self.filters;
        let any = reason.is_empty() && contract.is_none() && older_than.is_none();
        if any { "" } else { " of that kind" }
    }
}

/// How long ago it died, if that is known. By a clock that is behind the worker's, just now.
pub(super) fn age(letter: &DeadLetter, now: Millis) -> Option<Duration> {
    letter.died.map(|died| Duration::from_millis(u64::try_from(now.0 - died.0).unwrap_or(0)))
}

/// The one id that is `given` or begins so.
fn resolve<'a>(there: &'a BTreeSet<String>, given: &str) -> anyhow::Result<Option<&'a str>> {
    if given.is_empty() {
        bail!("an empty id names no letter; letters without an id are chosen by --reason or --all");
    }
    if let Some(whole) = there.get(given) {
        return Ok(Some(whole));
    }
    let mut fitting = there.iter().filter(|id| id.starts_with(given));
    match (fitting.next(), fitting.count()) {
        (first, 0) => Ok(first.map(String::as_str)),
        (_, more) => bail!(
            "{given}: {} dead letters' ids begin so, and nothing was done; give more of the id \
             (`muster dead list --json` shows them whole)",
            more + 1
        ),
    }
}

/// That no letter has an id.
pub(super) fn no_letter(id: &str) -> anyhow::Error {
    anyhow::anyhow!("{id}: no dead letter's id begins so; `muster dead list` shows them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::dead::show::tests::letter;

    #[test]
    fn an_id_may_be_cut_short_as_long_as_it_means_one() {
        let there: BTreeSet<String> = ["row-1", "row-10", "abc"].map(str::to_owned).into();
        assert_eq!(resolve(&there, "a").unwrap(), Some("abc"));
        assert_eq!(resolve(&there, "row-1").unwrap(), Some("row-1"), "whole before beginning");
        assert_eq!(resolve(&there, "x").unwrap(), None);
        assert!(resolve(&there, "row").unwrap_err().to_string().contains("2 dead letters"));
        assert!(resolve(&there, "").is_err());
    }

    #[test]
    fn every_filter_has_to_fit() {
        let takes = |filters: Filters| Choice::new(filters, Millis(60_000)).takes(&letter());
        let filters = || Filters {
            reason: vec!["poison".into(), "expired".into()],
            contract: Some(ContractId::Register),
            older_than: Some(Duration::from_secs(60)),
            limit: None,
        };
        assert!(takes(Filters::default()));
        assert!(takes(filters()));
        assert!(!takes(Filters { reason: vec!["poison".into()], ..filters() }));
        assert!(!takes(Filters { contract: Some(ContractId::Username), ..filters() }));
        assert!(!takes(Filters { older_than: Some(Duration::from_secs(61)), ..filters() }));
        let unknown = DeadLetter { died: None, ..letter() };
        assert!(!Choice::new(filters(), Millis(60_000)).takes(&unknown), "of unknown age");
    }
}
