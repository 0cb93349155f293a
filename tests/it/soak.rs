//! Random faults under load: connections of two fronts and two workers are cut, stalled or without responses, and
//! processes are killed. At the end the ledger is compared with the store.
//!
//! `SOAK_SECONDS=600 SOAK_SEED=1 ./tests/run --test it -- --ignored soak --nocapture`

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::Fleet;
use crate::support::fleet::ProxiedProcess;
use crate::support::proxy::Proxy;
use crate::support::random::{Random, env_number, pause};

/// Number of clients.
const CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes"]
async fn soak() {
    let seconds = env_number("SOAK_SECONDS", 600);
    let seed = env_number("SOAK_SEED", u64::from(std::process::id()));
    println!("SOAK_SECONDS={seconds} SOAK_SEED={seed}");
    let Some(mut fleet) = Fleet::new(2, 2, &[]).await else { return };
    for worker in &mut fleet.workers {
        worker.start().await;
    }
    let mut random = Random(seed);
    let mut faults: BTreeMap<String, usize> = BTreeMap::new();
    let load = fleet.ledger.start_load(&fleet.addresses, CLIENTS);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(seconds) {
        // Sometimes two faults at the same time.
        let active: Vec<Fault> = (0..=random.below(2)).map(|_| Fault::any(&mut random)).collect();
        for fault in &active {
            *faults.entry(fault.name()).or_default() += 1;
            fault.begin(&mut fleet).await;
            tokio::time::sleep(pause(&mut random, 1500)).await;
        }
        tokio::time::sleep(pause(&mut random, 3000)).await;
        for fault in &active {
            fault.end(&mut fleet).await;
        }
        tokio::time::sleep(pause(&mut random, 1000)).await;
    }
    load.finish().await;
    let summary = fleet.repeat_and_compare().await;
    println!("{} registrations, {} requests", summary.registrations, summary.requests);
    println!("responses: {:?}", summary.responses);
    println!("faults: {}, {faults:?}", faults.values().sum::<usize>());
    println!("lost: {}, duplicated: {}", summary.lost.len(), summary.duplicated.len());
    summary.assert_consistent();
}

/// A fault with a beginning and an end.
#[derive(Clone, Copy, Debug)]
struct Fault {
    kind: FaultKind,
    front: bool,
    /// Number of the process, 0 or 1.
    n: usize,
    store: bool,
}

#[derive(Clone, Copy, Debug)]
enum FaultKind {
    Cut,
    Stall,
    DropResponses,
    Kill,
}

impl Fault {
    fn any(random: &mut Random) -> Self {
        let kind = [FaultKind::Cut, FaultKind::Stall, FaultKind::DropResponses, FaultKind::Kill]
            [random.below(4) as usize];
        // A front has no connection to the store.
        let front = random.below(3) == 0;
        Self { kind, front, n: random.below(2) as usize, store: !front && random.below(2) == 0 }
    }

    fn name(&self) -> String {
        let role = if self.front { "front" } else { "worker" };
        match (self.kind, self.store) {
            (FaultKind::Kill, _) => format!("kill {role}"),
            (kind, true) => format!("{kind:?} {role}-store").to_lowercase(),
            (kind, false) => format!("{kind:?} {role}-broker").to_lowercase(),
        }
    }

    fn process<'a>(&self, fleet: &'a mut Fleet) -> &'a mut ProxiedProcess {
        if self.front { &mut fleet.fronts[self.n] } else { &mut fleet.workers[self.n] }
    }

    fn proxy<'a>(&self, fleet: &'a mut Fleet) -> &'a Proxy {
        let process = self.process(fleet);
        if self.store { &process.store } else { &process.broker }
    }

    async fn begin(&self, fleet: &mut Fleet) {
        match self.kind {
            FaultKind::Cut => self.proxy(fleet).cut(),
            FaultKind::Stall => self.proxy(fleet).stall(),
            FaultKind::DropResponses => self.proxy(fleet).drop_responses(),
            FaultKind::Kill if self.process(fleet).is_running() => {
                self.process(fleet).kill().await;
                fleet.update_addresses();
            }
            FaultKind::Kill => {}
        }
    }

    async fn end(&self, fleet: &mut Fleet) {
        match self.kind {
            FaultKind::Kill if !self.process(fleet).is_running() => {
                // A starting process must reach both services.
                self.process(fleet).broker.restore();
                self.process(fleet).store.restore();
                self.process(fleet).start().await;
                fleet.update_addresses();
            }
            FaultKind::Kill => {}
            _ => self.proxy(fleet).restore(),
        }
    }
}
