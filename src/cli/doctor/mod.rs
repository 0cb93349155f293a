//! `muster doctor`: looks at everything that a muster with these settings would use, and changes
//! nothing. What it finds on the broker and in the database is found by `queue` and `store`; what is in
//! this machine and in the settings, in `here`.

mod here;
mod management;
mod show;

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use url::Url;

use super::{
    EXIT_CONFIGURATION, EXIT_FAILED, EXIT_FINDINGS, EXIT_OK, SettingFlags, complain, runtime,
    stdout,
};
use crate::config::Settings;
use crate::telemetry::finding::{Finding, Severity};
use crate::{queue, store};
use show::Style;

/// Longest wait for the broker, and for the database. Both respond within milliseconds unless something is wrong; their
/// checks have shorter limits of their own, so that one that hangs does not hide the others.
const PATIENCE: Duration = Duration::from_secs(20);
/// What to do about settings with which nothing can be asked.
const MEND: &str = "mend the setting that is named";

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    muster doctor\n  \
    muster doctor --role front\n  \
    muster doctor --management http://broker:15672\n  \
    muster doctor --json | jq '.findings[] | select(.severity == \"error\")'\n\n\
    Exit codes: 0 nothing but notes, 1 it could not look, 2 settings are wrong, 3 warnings or errors.\n\
    Queues are compared by declaring those that are there once more, which changes nothing.")]
pub(super) struct Flags {
    #[command(flatten)]
    settings: SettingFlags,
    /// Check RabbitMQ's HTTP API too: the cluster, bindings, policies and alarms, which AMQP does not show.
    /// With the user of the queue unless the URL names another; it needs the tag monitoring.
    #[arg(long, value_name = "URL", value_parser = super::http_url)]
    management: Option<Url>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: Flags) -> u8 {
    if let Some(url) = &flags.management {
        let instead = "give the user of the queue the tag monitoring, and leave it out";
        super::warn_of_credentials("--management", url.as_str(), instead);
    }
    let start = flags.settings.clone().load();
    let settings = match flags.settings.load_for_client() {
        Ok(settings) => settings,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let mut findings: Vec<Finding> = start.as_ref().err().map(here::refused).into_iter().collect();
    let found =
        runtime().map(|runtime| runtime.block_on(look(&settings, flags.management.as_ref())));
    let printed = found.and_then(|found| {
        findings.extend(found);
        stdout::print(&shown(&findings, flags.json))?;
        Ok(findings.iter().map(|finding| finding.severity).max())
    });
    match printed {
        Ok(Some(Severity::Warning | Severity::Error)) => EXIT_FINDINGS,
        Ok(_) => EXIT_OK,
        Err(error) => {
            complain(&error);
            EXIT_FAILED
        }
    }
}

async fn look(settings: &Settings, management: Option<&Url>) -> Vec<Finding> {
    let mut findings = here::look(settings).await;
    let found = timeout(PATIENCE, queue::inspect(&settings.queue)).await;
    findings.extend(or_unusable("broker", MEND, found));
    let found = management::look(&settings.queue, management).await;
    findings.extend(or_unusable("management", queue::MANAGEMENT_REMEDY, Ok(found)));
    if settings.role.has_worker() {
        let found = timeout(PATIENCE, store::inspect(&settings.store)).await;
        findings.extend(or_unusable("database", MEND, found));
    }
    findings
}

fn or_unusable(
    check: &'static str,
    remedy: &str,
    found: Result<anyhow::Result<Vec<Finding>>, Elapsed>,
) -> Vec<Finding> {
    match found {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![Finding::error(check, format!("{error:#}"), remedy)],
        Err(_) => {
            let remedy = "see whether it runs, and what lies between";
            vec![Finding::error(check, "no answer in 20 s", remedy)]
        }
    }
}

fn shown(findings: &[Finding], as_json: bool) -> String {
    if as_json {
        let count = |severity| findings.iter().filter(|found| found.severity == severity).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let document = json!({ "errors": errors, "warnings": warnings, "findings": findings });
        return format!("{document}\n");
    }
    show::text(findings, Style::of_stdout())
}

/// A number and what is counted, in the plural where it is one.
fn counted(count: impl Into<i64>, what: &str) -> String {
    let count = count.into();
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
