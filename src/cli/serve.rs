//! `muster serve`: runs until it is asked to stop, softly the first time, at once the second.

mod summary;

use std::sync::mpsc::SyncSender;

use anyhow::Context;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, SettingFlags, begin, complain};
use crate::app::{Addresses, App, ExitReason};
use crate::config::{Role, Settings};
use crate::front::ReloadableFiles;
use crate::http_client::collector::Collector;
use crate::domain::Clock;
use crate::telemetry::export::SpanExport;
use crate::telemetry::{stderr, terminal};

pub(super) fn run(flags: SettingFlags) -> u8 {
    let (runtime, settings) = match begin(flags.load(), None) {
        Ok(begun) => begun,
        Err(code) => return code,
    };
    let export = match export(&settings, runtime.handle()) {
        Ok(export) => export,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let code = runtime.block_on(serve(&settings));
    // Before the runtime, which carries the last spans too. A hard stop waits for nobody.
    if let Some(export) = export.filter(|_| code != EXIT_FAILED) {
        export.shutdown();
    }
    // What still runs after a hard stop is not waited for.
    runtime.shutdown_background();
    code
}

/// Begins to send spans, if they are wanted.
fn export(settings: &Settings, runtime: &Handle) -> anyhow::Result<Option<SpanExport>> {
    let Some(trace) = &settings.trace else { return Ok(None) };
    let collector = Collector::new(trace, runtime.clone())?;
    SpanExport::start(trace, settings.role, collector).map(Some)
}

async fn serve(settings: &Settings) -> u8 {
    let (app, mut signals) = match start(settings).await {
        Ok(started) => started,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let reload = match Reload::start(app.files()) {
        Ok(reload) => reload,
        Err(error) => {
            complain(&error);
            return EXIT_CONFIGURATION;
        }
    };
    let stop = CancellationToken::new();
    let running = app.run_until(stop.clone().cancelled_owned());
    let mut running = std::pin::pin!(running);
    loop {
        tokio::select! {
            end = &mut running => return exit_code(end),
            asked = signals.next() => match asked {
                Asked::Reload => reload.request(),
                Asked::Stop if stop.is_cancelled() => {
                    complain(&anyhow::anyhow!("stopped at once, with requests under way"));
                    return EXIT_FAILED;
                }
                Asked::Stop => {
                    tracing::info!("stopping; a second signal stops at once");
                    stop.cancel();
                }
            },
        }
    }
}

/// What the end means to whoever started it, who is told why unless all is well.
fn exit_code(end: ExitReason) -> u8 {
    match end {
        ExitReason::Stopped => EXIT_OK,
        ExitReason::StoreIncompatible(error) => {
            complain(&anyhow::anyhow!(error));
            EXIT_CONFIGURATION
        }
    }
}

async fn start(settings: &Settings) -> anyhow::Result<(App, Signals)> {
    // Before anything is served: a signal that comes early must not end the process.
    let mut signals = Signals::new()?;
    if settings.role.has_front() && ReloadableFiles::are_configured(&settings.front) {
        signals.take_reload()?;
    }
    let is_new = summary::is_new(settings);
    terminal::starting();
    let app = App::start(settings, Clock::system()).await;
    let addresses = app.as_ref().map(App::addresses).unwrap_or_default();
    report(settings, addresses);
    terminal::started(settings.role == Role::All);
    let app = app?;
    if terminal::is_active() {
        stderr::text(&stderr::printable(&summary::text(settings, addresses, is_new)));
    }
    Ok((app, signals))
}

/// Logs where the process can be reached.
fn report(settings: &Settings, addresses: Addresses) {
    if let Some(front) = addresses.front {
        let scheme = if settings.front.tls.is_some() { "https" } else { "http" };
        tracing::info!("serving on {scheme}://{front}");
    }
    if let Some(admin) = addresses.admin {
        tracing::info!("probes on http://{admin}");
    }
}

/// Reads files again on a thread of its own: a file system that hangs must not delay a stop.
struct Reload(SyncSender<()>);

impl Reload {
    fn start(files: ReloadableFiles) -> anyhow::Result<Self> {
        let (request, requests) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("reload".into())
            .spawn(move || requests.iter().for_each(|()| files.reload()))
            .context("cannot start the thread that reads files again")?;
        Ok(Self(request))
    }

    /// Requests that come while one waits are the same request.
    fn request(&self) {
        let _ = self.0.try_send(());
    }
}

/// SIGTERM and SIGINT mean the same. SIGHUP means to read files again, where there are any; otherwise
/// it is left alone, so that a muster started in a terminal ends with it.
pub(super) struct Signals {
    reload: Option<Signal>,
    terminate: Signal,
    interrupt: Signal,
}

/// What a signal asks for.
pub(super) enum Asked {
    Stop,
    Reload,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            reload: None,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    fn take_reload(&mut self) -> std::io::Result<()> {
        self.reload = Some(signal(SignalKind::hangup())?);
        Ok(())
    }

    /// What was asked for.
    pub(super) async fn next(&mut self) -> Asked {
        let reload = async {
            match &mut self.reload {
                Some(reload) => reload.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = reload => Asked::Reload,
        }
    }
}
