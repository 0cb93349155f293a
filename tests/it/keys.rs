//! Asymmetric token keys: creation, listing, publication, rotation, and verification by a third-party library.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::support::command::{run, run_with};
use crate::support::muster::eventually;
use crate::support::services::{PRODUCTION, provided, unique};
use crate::support::{Muster, Setup};

/// Verifies a token with the keys at a URL, and prints its claims.
const VERIFIER: &str = r#"
import json, sys, jwt
url, token, algorithm, issuer, audience = sys.argv[1:6]
key = jwt.PyJWKClient(url).get_signing_key_from_jwt(token).key
claims = jwt.decode(token, key, algorithms=[algorithm], issuer=issuer, audience=audience,
                    options={"require": ["exp", "iat", "iss", "aud", "sub"]})
print(json.dumps(claims))
"#;

const JWKS: &str = "/.well-known/jwks.json";

/// Creates a key file and returns its path.
async fn make_key(setup: &Setup, algorithm: &str, name: &str) -> String {
    let path = setup.directory().join(name).to_str().unwrap().to_owned();
    run(setup, &["keys", "make", "--algorithm", algorithm, "--output", &path])
        .await
        .expect_stdout();
    path
}

/// Registers a user and returns the token.
async fn token(muster: &Muster) -> String {
    let email = format!("{}@example.com", unique("keys"));
    let body =
        json!({ "fullname": { "firstname": "Ann" }, "email": email, "password": "a password" });
    let response = muster.client().post("/register", &body).await;
    assert_eq!(response.status, 201, "{:?}", response.json());
    let response = response.json();
    let data = response.get("data").unwrap_or(&response);
    data["token"].as_str().unwrap().to_owned()
}

async fn profile(muster: &Muster, token: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    muster.client().get("/users/profile", &[("authorization", &bearer)]).await.status
}

async fn published(muster: &Muster) -> Vec<Value> {
    let response = muster.client().get(JWKS, &[]).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("cache-control"), Some("public, max-age=300"));
    response.json()["keys"].as_array().unwrap().clone()
}

fn header(token: &str) -> jsonwebtoken::Header {
    jsonwebtoken::decode_header(token).unwrap()
}

#[tokio::test]
async fn third_party_library_verifies_the_tokens() {
    let Some(python) = provided("TEST_PYTHON") else { return };
    for (choice, algorithm) in [("eddsa", "EdDSA"), ("es256", "ES256"), ("rs256", "RS256")] {
        let setup = Setup::embedded()
            .with("MUSTER_TOKEN_ISSUER", "https://muster.example")
            .with("MUSTER_TOKEN_AUDIENCE", "the-shop");
        let key = make_key(&setup, choice, "key.pem").await;
        let setup = setup.with("MUSTER_TOKEN_KEY_FILES", &key);
        let muster = setup.start().await;
        let token = token(&muster).await;
        assert_eq!(profile(&muster, &token).await, 200, "{algorithm}");
        let url = format!("http://{}{JWKS}", muster.client().address());
        let verify = |issuer: &str, audience: &str| {
            let arguments = ["-c", VERIFIER, &url, &token, algorithm, issuer, audience];
            let mut command = tokio::process::Command::new(&python);
            command.args(arguments).kill_on_drop(true);
            async move { command.output().await.unwrap() }
        };
        let output = verify("https://muster.example", "the-shop").await;
        assert!(
            output.status.success(),
            "{algorithm}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let claims: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(claims["contract"], "register");
        assert_eq!(claims["aud"], "the-shop");
        assert!(!verify("https://muster.example", "others").await.status.success(), "audience");
        assert!(!verify("https://others.example", "the-shop").await.status.success(), "issuer");
    }
}

#[tokio::test]
async fn key_rotation_keeps_old_tokens_valid() {
    let setup = Setup::embedded();
    let [old, new] =
        [make_key(&setup, "es256", "old.pem").await, make_key(&setup, "eddsa", "new.pem").await];

    // Without keys, then with the first key, and the second one published in advance.
    let muster = setup.start().await;
    let by_secret = token(&muster).await;
    assert_eq!(header(&by_secret).kid, None);
    assert_eq!(muster.client().get(JWKS, &[]).await.status, 404, "a secret has no public key");
    muster.stop().await;

    let muster =
        setup.clone().with("MUSTER_TOKEN_KEY_FILES", &format!("{old},{new}")).start().await;
    let by_old = token(&muster).await;
    let keys = published(&muster).await;
    assert_eq!(keys.len(), 2);
    assert_eq!(header(&by_old).kid.as_deref(), keys[0]["kid"].as_str());
    assert_eq!(profile(&muster, &by_secret).await, 200);
    muster.stop().await;

    // The second one signs.
    let muster =
        setup.clone().with("MUSTER_TOKEN_KEY_FILES", &format!("{new},{old}")).start().await;
    let by_new = token(&muster).await;
    assert_eq!(header(&by_new).kid.as_deref(), keys[1]["kid"].as_str());
    for token in [&by_secret, &by_old, &by_new] {
        assert_eq!(profile(&muster, token).await, 200);
    }
    muster.stop().await;

    // Without the first key.
    let muster = setup.with("MUSTER_TOKEN_KEY_FILES", &new).start().await;
    assert_eq!(published(&muster).await.len(), 1);
    assert_eq!(profile(&muster, &by_old).await, 401);
    assert_eq!(profile(&muster, &by_new).await, 200);
}

#[tokio::test]
async fn front_publishes_its_jwks_file_without_private_keys() {
    let setup = Setup::embedded();
    let [one, two] =
        [make_key(&setup, "eddsa", "one.pem").await, make_key(&setup, "rs256", "two.pem").await];
    let file = setup.directory().join("jwks.json");
    let set = run(&setup, &["keys", "jwks", &one]).await.expect_stdout();
    std::fs::write(&file, &set).unwrap();
    let setup = setup.with("MUSTER_FRONT_JWKS_FILE", file.to_str().unwrap());

    let mut muster = setup.start().await;
    assert_eq!(published(&muster).await.len(), 1);
    let both = run(&setup, &["keys", "jwks", &one, &two]).await.expect_stdout();
    std::fs::write(&file, &both).unwrap();
    muster.signal("HUP");
    eventually("the new key set", async || published(&muster).await.len() == 2).await;

    // An invalid file is logged, and the old key set stays.
    let mut private: Value = serde_json::from_str(&set).unwrap();
    private["keys"][0]["d"] = json!("hunter2");
    std::fs::write(&file, private.to_string()).unwrap();
    muster.signal("HUP");
    muster.wait_for_event_with("reload_failed", "private key").await;
    assert_eq!(published(&muster).await.len(), 2);
    assert!(!muster.output().contains("hunter2"));
    drop(muster);

    let refused = run(&setup, &["serve"]).await;
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("front.jwks_file") && !refused.stderr.contains("hunter2"));
}

#[tokio::test]
async fn front_role_publishes_keys_without_a_secret() {
    if !PRODUCTION.is_available() {
        return;
    }
    let setup = Setup::new(PRODUCTION);
    let key = make_key(&setup, "eddsa", "key.pem").await;
    let file = setup.directory().join("jwks.json");
    std::fs::write(&file, run(&setup, &["keys", "jwks", &key]).await.expect_stdout()).unwrap();
    let mut front = setup.clone().with("MUSTER_FRONT_JWKS_FILE", file.to_str().unwrap());
    for name in ["JWT_SECRET", "MUSTER_STORE"] {
        front.environment.remove(name);
    }
    let front = front.start_role("front").await;
    assert_eq!(published(&front).await.len(), 1);
    // The worker has the key and no secret.
    let mut worker = setup.with("MUSTER_TOKEN_KEY_FILES", &key);
    worker.environment.remove("JWT_SECRET");
    let _worker = worker.start_role("worker").await;
    let token = token(&front).await;
    assert_eq!(header(&token).kid.as_deref(), published(&front).await[0]["kid"].as_str());
    assert_eq!(profile(&front, &token).await, 200);
}

#[tokio::test]
async fn private_key_is_owner_readable_and_printed_only_on_request() {
    let setup = Setup::embedded();
    for algorithm in ["eddsa", "es256", "rs256"] {
        let path = make_key(&setup, algorithm, algorithm).await;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let pem = std::fs::read_to_string(&path).unwrap();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"), "PKCS#8");
        let secret = pem.lines().nth(1).unwrap();
        let again = run(&setup, &["keys", "make", "--output", &path]).await;
        assert_eq!(again.code, Some(1), "an existing key is never overwritten");
        for arguments in [
            &["keys", "list", &path][..],
            &["keys", "list", "--json", &path],
            &["keys", "jwks", &path],
        ] {
            let output = run(&setup, arguments).await;
            assert!(!output.stdout.contains(secret) && !output.stderr.contains(secret));
        }
    }
    let printed = run(&setup, &["keys", "make", "--output", "-"]).await.expect_stdout();
    assert!(printed.starts_with("-----BEGIN PRIVATE KEY-----\n"));

    let with = setup.clone().with("MUSTER_TOKEN_KEY_FILES", "eddsa,rs256");
    let listed = run(&with, &["keys", "list"]).await.expect_stdout();
    let rows: Vec<Vec<&str>> =
        listed.lines().map(|line| line.split_whitespace().skip(1).collect()).collect();
    let expected = [
        ["EdDSA", "signs", "eddsa"],
        ["RS256", "verifies", "rs256"],
        ["HS256", "verifies", "JWT_SECRET"],
    ];
    assert_eq!(rows, expected);
    // A key from OpenSSL.
    let openssl = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
        -----END PRIVATE KEY-----\n";
    let path = setup.directory().join("rfc8037.pem");
    std::fs::write(&path, openssl).unwrap();
    let listed =
        run_with(&setup, &["keys", "list", "--json", path.to_str().unwrap()], "").await.json();
    assert_eq!(listed["kid"], "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
}
