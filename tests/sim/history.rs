//! One history: fronts, workers, clients and other systems that publish bulk rows, with faults at any step, all from one
//! seed on one thread with simulated time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::AddAssign;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use muster::config::{Flag, Settings, Sources};
use muster::contract::Policy;
use muster::domain::{
    Clock, ContractId, MessageId, Millis, Origin, Outcome, RegistrationId, RejectionCode,
};
use muster::front::{Front, ReloadableFiles};
use muster::queue::seal::Opener;
use muster::queue::{Message, MessageKind, QueueKind, ReplyAddress};
use muster::shutdown::Tasks;
use muster::telemetry::{Telemetry, TraceContext};
use muster::token::{ClaimRules, Signer, TokenKey};
use muster::worker::{Worker, consume};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::checker::{self, Attempt, FinalUser, Response};
use super::hasher::SimHasher;
use super::queue::{BulkResult, ConnectionCutter, SimBroker, SimConsumer, SimRpcClient, settled};
use super::store::{SimStore, Users};
use super::world::{Process, World};

/// How long a client waits for a response: longer than `front.request_timeout`.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(12);
/// Simulated time in which everything has come to rest once there are no more faults.
const REST: Duration = Duration::from_secs(300);
/// Registrations in flight at one front.
const IN_FLIGHT_MAX: usize = 5;
const SECRET: &str = "0123456789abcdef0123456789abcdef";

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
    let set = [
        ("token.secret", SECRET.to_owned()),
        ("front.max_in_flight", IN_FLIGHT_MAX.to_string()),
        ("front.ui", "off".to_owned()),
    ];
    let flags = set.map(|(key, value)| Flag { name: "sim", key, value });
    let sources = Sources { flags: flags.into(), ..Sources::default() };
    Settings::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
});

/// Shared by all processes of all histories, because registering the metrics takes longer than a history.
static TELEMETRY: LazyLock<Telemetry> = LazyLock::new(Telemetry::default);

/// Size of a history, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Steps of a process: calls of the queue, the store or the hash pool.
    pub(super) steps: u64,
    /// Attempts to register, over HTTP or as bulk rows.
    pub(super) attempts: usize,
    /// Users in the store at the end.
    pub(super) users: usize,
    /// Simulated time, in microseconds.
    pub(super) time: u64,
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.attempts += other.attempts;
        self.users += other.users;
        self.time += other.time;
    }
}

/// Runs the history of a seed.
///
/// # Errors
/// Returns what is wrong with it.
pub(super) fn run(seed: u64) -> Result<Summary, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async { History::new(seed).run().await })
}

struct WorkerProcess {
    process: Arc<Process>,
    connection: ConnectionCutter,
    tasks: Tasks,
}

struct FrontProcess {
    process: Arc<Process>,
    front: Arc<Front>,
}

struct History {
    world: Arc<World>,
    broker: Arc<SimBroker>,
    users: Arc<Users>,
    signer: Signer,
    clock: Clock,
    workers: Mutex<Vec<WorkerProcess>>,
    fronts: Mutex<Vec<FrontProcess>>,
    attempts: Mutex<Vec<Attempt>>,
    rows: Mutex<Vec<Row>>,
}

/// A bulk row that another system published.
struct Row {
    message_id: String,
    attempt: Attempt,
}

/// A signup that a client wants, under one idempotency key.
#[derive(Clone)]
struct Signup {
    contract: ContractId,
    path: &'static str,
    document: Value,
    key: String,
}

impl Signup {
    fn draw(world: &World, number: usize) -> Self {
        let mut rng = world.rng();
        let email = format!("user{}@example.com", rng.u8(0..4));
        let password = ["correct-horse", "battery-staple"][rng.usize(0..2)];
        // Few keys, so that some are used for two documents.
        let key = match rng.u8(0..10) {
            0 => "shared-key-of-two-signups".to_owned(),
            _ => format!("idempotency-key-{number:08}"),
        };
        if rng.bool() {
            let document = json!({
                "fullname": { "firstname": "John", "lastname": "Doe" }, "email": email, "password": password,
            });
            Self { contract: ContractId::NestedName, path: "/users/register", document, key }
        } else {
            let mut document =
                json!({ "username": format!("name{}", rng.u8(0..4)), "password": password });
            if rng.bool() {
                document["email"] = json!(email);
            }
            Self { contract: ContractId::Username, path: "/signup", document, key }
        }
    }

    fn attempt(&self, world: &World, origin: &Origin, id: &MessageId) -> Attempt {
        let text = |key: &str| self.document[key].as_str().map(str::to_owned);
        Attempt {
            registration: RegistrationId::derive(origin, self.contract, id).as_str().to_owned(),
            document: self.document.to_string(),
            email: text("email"),
            username: text("username"),
            start: world.now(),
            end: None,
            response: Response::Unknown,
        }
    }
}

impl History {
    fn new(seed: u64) -> Arc<Self> {
        let world = World::new(seed);
        let (clock, _) = Clock::fixed(Millis(1_700_000_000_000));
        Arc::new(Self {
            broker: SimBroker::new(&world),
            users: Arc::default(),
            signer: signer(&clock),
            clock,
            workers: Mutex::default(),
            fronts: Mutex::default(),
            attempts: Mutex::default(),
            rows: Mutex::default(),
            world,
        })
    }

    async fn run(self: Arc<Self>) -> Result<Summary, String> {
        let (workers, fronts, clients, rows) = {
            let mut rng = self.world.rng();
            (rng.u8(1..=3), rng.u8(1..=2), rng.usize(2..=8), rng.usize(0..=6))
        };
        (0..workers).for_each(|_| self.start_worker());
        (0..fronts).for_each(|_| self.start_front());
        let driving = async {
            let client = |number| tokio::spawn(self.clone().client(number));
            let clients: Vec<_> = (0..clients).map(client).collect();
            for number in 0..rows {
                self.world.delay().await;
                self.publish_row(number);
            }
            for client in clients {
                client.await.map_err(|error| error.to_string())?;
            }
            Ok::<(), String>(())
        };
        tokio::select! {
            biased;
            driven = driving => driven?,
            () = self.disturb() => {}
        }
        self.world.calm();
        self.start_worker();
        if !settled(&self.broker, Instant::now() + REST).await {
            let (messages, pending) = (self.broker.messages(), self.broker.pending());
            return Err(format!("not at rest: {messages} messages and {pending} calls are left"));
        }
        self.check()
    }

    fn start_worker(&self) {
        let process = Process::start(&self.world);
        let (consumer, connection) = SimConsumer::connect(&self.broker, &process, [4, 6, 4]);
        let store = Arc::new(SimStore { users: self.users.clone(), process: process.clone() });
        let worker = Worker {
            store: store.clone(),
            bulk_store: store,
            hash_pool: Arc::new(SimHasher::new(&process)),
            policy: Policy::default(),
            opener: Opener::new(&SETTINGS.queue),
            signer: signer(&self.clock),
            replay_window: None,
            retries: true,
            expiration_max: Duration::from_secs(30),
            clock: self.clock.clone(),
            metrics: TELEMETRY.metrics.clone(),
        };
        let tasks = Tasks::default();
        tasks.spawn(consume(Arc::new(worker), Box::new(consumer), tasks.clone()));
        lock(&self.workers).push(WorkerProcess { process, connection, tasks });
    }

    fn start_front(&self) {
        let process = Process::start(&self.world);
        let client = SimRpcClient {
            broker: self.broker.clone(),
            process: process.clone(),
            in_flight: AtomicUsize::new(0),
        };
        let (files, telemetry) = (ReloadableFiles::default(), TELEMETRY.clone());
        let stop = CancellationToken::new();
        let front =
            Front::new(&SETTINGS, Policy::default(), Arc::new(client), &files, telemetry, stop);
        lock(&self.fronts).push(FrontProcess { process, front });
    }

    /// Crashes and stops processes, and cuts connections, at random times. Never returns.
    async fn disturb(&self) {
        let pause = { self.world.rng().u64(20..5_000) };
        loop {
            let wait = { self.world.rng().u64(0..pause) };
            sleep(Duration::from_millis(wait)).await;
            let (kind, victim) = {
                let mut rng = self.world.rng();
                (rng.u8(0..4), rng.usize(..))
            };
            match kind {
                0 => {
                    let worker = {
                        let mut workers = lock(&self.workers);
                        let at = victim % workers.len();
                        workers.swap_remove(at)
                    };
                    worker.process.crash();
                    worker.connection.cut();
                    self.start_worker();
                }
                1 => {
                    let workers = lock(&self.workers);
                    workers[victim % workers.len()].connection.cut();
                }
                2 => {
                    let at = victim % lock(&self.fronts).len();
                    lock(&self.fronts).swap_remove(at).process.crash();
                    self.start_front();
                }
                _ => {
                    let worker = {
                        let mut workers = lock(&self.workers);
                        let at = victim % workers.len();
                        workers.swap_remove(at)
                    };
                    worker.tasks.stop();
                    tokio::spawn(async move {
                        worker.tasks.ended().await;
                        worker.connection.cut();
                    });
                    self.start_worker();
                }
            }
        }
    }

    /// Signs up until a response is final, a few times at most.
    async fn client(self: Arc<Self>, number: usize) {
        let signups = { self.world.rng().usize(1..=2) };
        for turn in 0..signups {
            let signup = Signup::draw(&self.world, number * 10 + turn);
            let tries = { self.world.rng().usize(1..=4) };
            for _ in 0..tries {
                self.world.delay().await;
                let response = self.attempt(&signup).await;
                if !matches!(response, Response::Unknown | Response::NoEffect) {
                    break;
                }
            }
        }
    }

    async fn attempt(&self, signup: &Signup) -> Response {
        let front = {
            let (fronts, at) = (lock(&self.fronts), self.world.rng().usize(..));
            fronts[at % fronts.len()].front.clone()
        };
        let Some(key) = muster::domain::IdempotencyKey::parse(signup.key.as_bytes()) else {
            unreachable!("{} is a valid key", signup.key)
        };
        let id = MessageId::for_http(signup.contract, &key);
        let mut attempt = signup.attempt(&self.world, &Origin::Http, &id);
        let at = {
            let mut attempts = lock(&self.attempts);
            attempts.push(attempt.clone());
            attempts.len() - 1
        };
        let request = Request::post(signup.path)
            .header("content-type", "application/json")
            .header("idempotency-key", &signup.key)
            .body(Full::new(Bytes::from(signup.document.to_string())));
        let Ok(request) = request else { unreachable!("a valid request") };
        let leaves_early = { self.world.rng().u8(0..8) == 0 };
        let within = match leaves_early {
            true => Duration::from_millis(self.world.rng().u64(0..3_000)),
            false => CLIENT_TIMEOUT,
        };
        let peer = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 40_000);
        if let Ok(response) = timeout(within, front.respond(request, peer)).await {
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.map(|body| body.to_bytes());
            let body =
                body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
            attempt.response = self.classify(status, &body);
            attempt.end = Some(self.world.now());
        }
        let response = attempt.response.clone();
        lock(&self.attempts)[at] = attempt;
        response
    }

    /// What an HTTP response says of the store.
    fn classify(&self, status: u16, body: &Value) -> Response {
        match status {
            201 => {
                let user = body["user"]["_id"].as_str().unwrap_or("none").to_owned();
                let token = body["token"].as_str().unwrap_or_default();
                // A token of another user is reported as that user.
                let user = match self.signer.verify(token) {
                    Ok(id) if serde_json::to_value(id).ok() == Some(json!(user)) => user,
                    _ => format!("{user}, whose token is another one's"),
                };
                Response::Created { user }
            }
            400 => Response::Duplicate { field: "email" },
            403 if body.to_string().contains("username") => {
                Response::Duplicate { field: "username" }
            }
            403 => Response::Duplicate { field: "email" },
            422 => Response::KeyReused,
            503 => Response::NoEffect,
            500 | 504 => Response::Unknown,
            other => unreachable!("status {other}: {body}"),
        }
    }

    fn publish_row(&self, number: usize) {
        let signup = Signup::draw(&self.world, 1_000 + number);
        let Some(id) = MessageId::parse(&format!("row-{number}")) else {
            unreachable!("a valid id")
        };
        let origin = Origin::Amqp { producer: "crm".into() };
        let attempt = signup.attempt(&self.world, &origin, &id);
        let asks = { self.world.rng().bool() };
        let reply_address = match asks {
            true => SimBroker::row_reply_address(id.as_str()),
            false => ReplyAddress::default(),
        };
        let message = Message {
            queue: QueueKind::Bulk,
            kind: MessageKind::Register(signup.contract),
            id: id.clone(),
            origin,
            new_key: false,
            sealed: None,
            body: Bytes::from(signup.document.to_string()),
            expires: None,
            expiration: None,
            deliveries: 0,
            attempt: 0,
            trace: TraceContext::default(),
            reply_address,
        };
        lock(&self.rows).push(Row { message_id: id.as_str().to_owned(), attempt });
        self.broker.publish_row(message);
    }

    /// Checks the whole history at its end.
    fn check(&self) -> Result<Summary, String> {
        let mut attempts = lock(&self.attempts).clone();
        let stored = self.users.all();
        let log = self.broker.log();
        for row in &*lock(&self.rows) {
            let results: Vec<_> = log
                .bulk_results
                .iter()
                .filter(|(id, _)| *id == row.message_id)
                .map(|(_, it)| it)
                .collect();
            attempts.extend(self.row_attempts(row, &results)?);
        }
        let users: Vec<FinalUser> = stored
            .iter()
            .map(|user| FinalUser {
                id: id_text(user.user.id),
                registration: user.registration_id.as_str().to_owned(),
                email: user.email_key.clone(),
                username: user.user.username.clone(),
            })
            .collect();
        checker::check(&attempts, &users)?;
        if let Some(deliveries) = log.early_poison {
            return Err(format!("a message was given up as poison after {deliveries} deliveries"));
        }
        if log.calls_max > IN_FLIGHT_MAX {
            return Err(format!(
                "{} calls in flight at one front, expected {IN_FLIGHT_MAX}",
                log.calls_max
            ));
        }
        for event in &log.registered_events {
            if !users.iter().any(|user| user.registration == *event) {
                return Err(format!("an event for a user that is not stored: {event}"));
            }
        }
        Ok(Summary {
            steps: self.world.steps(),
            attempts: attempts.len(),
            users: users.len(),
            time: self.world.now(),
        })
    }

    /// A bulk row as attempts, one for each different result: what its deliveries report must fit together.
    fn row_attempts(&self, row: &Row, results: &[&BulkResult]) -> Result<Vec<Attempt>, String> {
        let mut attempt = row.attempt.clone();
        if results.is_empty() {
            return Err(format!("a bulk row has no result: {attempt:#?}"));
        }
        attempt.end = Some(self.world.now());
        let mut responses: Vec<Response> = Vec::new();
        for result in results {
            let response = match result {
                BulkResult::DeadLettered(_) => Response::Unknown,
                BulkResult::Replied(outcome) => match &**outcome {
                    Outcome::Registered { user, .. } => {
                        Response::Created { user: id_text(user.id) }
                    }
                    Outcome::Rejected(rejection) => match rejection.code {
                        RejectionCode::KeyReused => Response::KeyReused,
                        RejectionCode::Duplicate => {
                            let names =
                                |field| rejection.errors.iter().any(|error| error.field == field);
                            Response::Duplicate {
                                field: if names("username") { "username" } else { "email" },
                            }
                        }
                        code => return Err(format!("a row was rejected: {code:?}")),
                    },
                    other => return Err(format!("a row got the outcome {other:?}")),
                },
            };
            if response != Response::Unknown && !responses.contains(&response) {
                responses.push(response);
            }
        }
        if responses.is_empty() {
            responses.push(Response::Unknown);
        }
        Ok(responses.into_iter().map(|response| Attempt { response, ..attempt.clone() }).collect())
    }
}

fn signer(clock: &Clock) -> Signer {
    let rules = ClaimRules { lifetime: Duration::from_secs(3600), issuer: None, audience: None };
    let key = TokenKey::secret(&SecretString::from(SECRET));
    Signer::new(key, Vec::new(), rules, clock.clone())
}

fn id_text(id: muster::domain::UserId) -> String {
    match serde_json::to_value(id) {
        Ok(Value::String(text)) => text,
        other => format!("{other:?}"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
