//! A key that signs and verifies tokens: the HS256 secret, or a private key from a PEM file.

use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, Jwk, KeyAlgorithm, PublicKeyUse, RSAKeyParameters,
    RSAKeyType, ThumbprintHash,
};
use jsonwebtoken::{Algorithm as Jwa, DecodingKey, EncodingKey, Header};
use pkcs8::{LineEnding, ObjectIdentifier, PrivateKeyInfo, SecretDocument};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::config::file;

const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const ELLIPTIC_CURVE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// The PEM label of an unencrypted PKCS#8 private key.
const PEM_LABEL: &str = "PRIVATE KEY";
/// Size of a generated RSA key, in bits: the minimum for RS256 (RFC 7518, 3.3). Larger keys slow down
/// signing and verifying.
const RSA_BITS: usize = 2048;

/// The signature algorithm of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningAlgorithm {
    /// HMAC with SHA-256. Verifiers need the secret, with which they could also sign.
    Hs256,
    /// Ed25519. Small keys and signatures.
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSA with SHA-256, for verifiers that support nothing newer.
    Rs256,
}

impl SigningAlgorithm {
    /// The algorithms for which verifiers need only a public key.
    pub const PUBLIC: [Self; 3] = [Self::EdDsa, Self::Es256, Self::Rs256];

    /// Returns the name in a token's header (RFC 7518, 3.1; RFC 8037, 3.1).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }

    pub(super) fn jwa(self) -> Jwa {
        match self {
            Self::Hs256 => Jwa::HS256,
            Self::EdDsa => Jwa::EdDSA,
            Self::Es256 => Jwa::ES256,
            Self::Rs256 => Jwa::RS256,
        }
    }
}

/// A key that signs and verifies tokens.
pub struct TokenKey {
    algorithm: SigningAlgorithm,
    /// The public key; `None` for a secret.
    public: Option<Jwk>,
    private: PrivateKey,
    pub(super) verifying: DecodingKey,
}

enum PrivateKey {
    Jsonwebtoken(EncodingKey),
    /// Signs with ring, in constant time. `jsonwebtoken` 11 signs with the `rsa` crate, which is
    /// vulnerable to timing attacks (RUSTSEC-2023-0071).
    Rsa(Box<ring::rsa::KeyPair>),
}

impl TokenKey {
    /// Creates an HS256 key. The settings ensure that the secret has at least 32 bytes.
    pub fn secret(secret: &SecretString) -> Self {
        let secret = secret.expose_secret().as_bytes();
        Self {
            algorithm: SigningAlgorithm::Hs256,
            public: None,
            private: PrivateKey::Jsonwebtoken(EncodingKey::from_secret(secret)),
            verifying: DecodingKey::from_secret(secret),
        }
    }

    /// Reads a private key from a PEM file.
    ///
    /// # Errors
    /// If the file cannot be read or [`from_pem`](Self::from_pem) rejects it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let pem = file::read_text(path).map(Zeroizing::new);
        let pem = pem.with_context(|| format!("{}: cannot be read", path.display()))?;
        Self::from_pem(&pem).with_context(|| path.display().to_string())
    }

    /// Parses a private key in PKCS#8: Ed25519, P-256 or RSA (2048 to 4096 bits).
    ///
    /// # Errors
    /// If the text is not such a key. The error contains nothing of the text.
    pub fn from_pem(pem: &str) -> anyhow::Result<Self> {
        // The parser's error is dropped, because it could contain a part of the key.
        let Ok((label, document)) = SecretDocument::from_pem(pem) else {
            bail!("expected a PEM file with one private key; `muster keys make` makes one")
        };
        if label.ends_with("PUBLIC KEY") {
            bail!("holds a public key ({label}); expected the private key that belongs to it");
        }
        if label != PEM_LABEL {
            bail!(
                "expected {PEM_LABEL} (PKCS#8, not encrypted), got {label}; convert it with: \
                 openssl pkcs8 -topk8 -nocrypt"
            );
        }
        let Ok(info) = PrivateKeyInfo::try_from(document.as_bytes()) else {
            bail!("expected a PKCS#8 key; `muster keys make` makes one")
        };
        let curve = info.algorithm.parameters_oid().ok();
        match (info.algorithm.oid, curve) {
            (ED25519, _) => {
                // Encoded again without the public key that some programs add (PKCS#8 v2). The public
                // key is derived from the private key instead.
                let plain = PrivateKeyInfo::new(info.algorithm, info.private_key);
                let plain = SecretDocument::try_from(plain).context("invalid Ed25519 key")?;
                Self::from_encoding_key(
                    SigningAlgorithm::EdDsa,
                    EncodingKey::from_ed_der(plain.as_bytes()),
                )
            }
            (ELLIPTIC_CURVE, Some(P256)) => Self::from_encoding_key(
                SigningAlgorithm::Es256,
                EncodingKey::from_ec_der(document.as_bytes()),
            ),
            (RSA, _) => Self::from_rsa_der(document.as_bytes()),
            _ => bail!("expected an Ed25519, P-256 or RSA key, got a key of another type"),
        }
    }

    fn from_encoding_key(
        algorithm: SigningAlgorithm,
        private: EncodingKey,
    ) -> anyhow::Result<Self> {
        let public = Jwk::from_encoding_key(&private, algorithm.jwa());
        let Ok(public) = public else { bail!("invalid {} key", algorithm.as_str()) };
        Self::with_public(algorithm, public, PrivateKey::Jsonwebtoken(private))
    }

    fn from_rsa_der(der: &[u8]) -> anyhow::Result<Self> {
        let pair = match ring::rsa::KeyPair::from_pkcs8(der) {
            Ok(pair) => pair,
            Err(error) => bail!("invalid RSA key: {error}; expected 2048 to 4096 bits"),
        };
        let components = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
        let public = Jwk {
            common: CommonParameters {
                key_algorithm: Some(KeyAlgorithm::RS256),
                ..CommonParameters::default()
            },
            algorithm: AlgorithmParameters::RSA(RSAKeyParameters {
                key_type: RSAKeyType::RSA,
                n: BASE64.encode(components.n),
                e: BASE64.encode(components.e),
            }),
        };
        Self::with_public(SigningAlgorithm::Rs256, public, PrivateKey::Rsa(Box::new(pair)))
    }

    fn with_public(
        algorithm: SigningAlgorithm,
        mut public: Jwk,
        private: PrivateKey,
    ) -> anyhow::Result<Self> {
        let verifying = DecodingKey::from_jwk(&public)?;
        // The id is the thumbprint (RFC 7638), so that all processes use the same id for a key.
        public.common.key_id = Some(public.thumbprint(ThumbprintHash::SHA256)?);
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { algorithm, public: Some(public), private, verifying })
    }

    /// Returns the signature algorithm.
    pub fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }

    /// Returns the key id (`kid`) in signed tokens; `None` for a secret.
    pub fn id(&self) -> Option<&str> {
        self.public.as_ref()?.common.key_id.as_deref()
    }

    /// Returns the public key as a JWK (RFC 7517); `None` for a secret.
    pub fn public_jwk(&self) -> Option<serde_json::Value> {
        serde_json::to_value(self.public.as_ref()?).ok()
    }

    /// Returns a signed token with the claims.
    pub(super) fn sign(&self, claims: &impl Serialize) -> anyhow::Result<String> {
        let mut header = Header::new(self.algorithm.jwa());
        header.kid = self.id().map(str::to_owned);
        let pair = match &self.private {
            PrivateKey::Jsonwebtoken(key) => {
                return Ok(jsonwebtoken::encode(&header, claims, key)?);
            }
            PrivateKey::Rsa(pair) => pair,
        };
        let [header, claims] = [serde_json::to_vec(&header)?, serde_json::to_vec(claims)?];
        let mut token = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), token.as_bytes(), &mut signature)
            .map_err(|_| anyhow::anyhow!("signing with RSA failed"))?;
        token.push('.');
        token.push_str(&BASE64.encode(signature));
        Ok(token)
    }
}

/// Generates a private key and returns it in PEM. RSA can take a second.
pub fn generate(algorithm: SigningAlgorithm) -> anyhow::Result<Zeroizing<String>> {
    let document = match algorithm {
        SigningAlgorithm::EdDsa => {
            // 32 random bytes as an octet string (RFC 8410, 7: CurvePrivateKey).
            let mut octets = Zeroizing::new([0; 34]);
            octets[..2].copy_from_slice(&[0x04, 0x20]);
            getrandom::fill(&mut octets[2..]).context("the system's random generator failed")?;
            let kind = pkcs8::AlgorithmIdentifierRef { oid: ED25519, parameters: None };
            SecretDocument::try_from(PrivateKeyInfo::new(kind, &octets[..]))
        }
        SigningAlgorithm::Es256 => {
            let generated = EcdsaKeyPair::generate_pkcs8(
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                &SystemRandom::new(),
            );
            let generated =
                generated.map_err(|_| anyhow::anyhow!("the system's random generator failed"))?;
            SecretDocument::try_from(generated.as_ref()).map_err(pkcs8::Error::from)
        }
        SigningAlgorithm::Rs256 => {
            let generated = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, RSA_BITS)?;
            rsa::pkcs8::EncodePrivateKey::to_pkcs8_der(&generated)
        }
        SigningAlgorithm::Hs256 => {
            bail!("HS256 uses a secret, not a key file; make one with: openssl rand -base64 48")
        }
    };
    let pem = document.and_then(|document| Ok(document.to_pem(PEM_LABEL, LineEnding::LF)?));
    pem.map_err(|error| anyhow::anyhow!("encoding the generated key failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_key_is_readable_and_has_a_stable_id() {
        for algorithm in SigningAlgorithm::PUBLIC {
            let pem = generate(algorithm).unwrap();
            let key = TokenKey::from_pem(&pem).unwrap();
            assert_eq!(key.algorithm(), algorithm);
            assert_eq!(key.id(), TokenKey::from_pem(&pem).unwrap().id());
            let public = key.public_jwk().unwrap();
            assert_eq!(public["alg"], algorithm.as_str());
            assert_eq!(public["use"], "sig");
            for private in ["d", "p", "q", "dp", "dq", "qi", "k"] {
                assert!(public.get(private).is_none(), "{private} is private");
            }
        }
    }

    #[test]
    fn key_id_is_the_thumbprint() {
        // The key of RFC 8037, appendix A.1, and its thumbprint from A.3.
        let pem = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
            -----END PRIVATE KEY-----\n";
        let key = TokenKey::from_pem(pem).unwrap();
        assert_eq!(key.id(), Some("kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"));
        assert_eq!(key.public_jwk().unwrap()["x"], "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
    }

    #[test]
    fn invalid_key_is_rejected_and_not_in_the_error() {
        let rsa = "-----BEGIN RSA PRIVATE KEY-----\nMC4=\n-----END RSA PRIVATE KEY-----\n";
        let empty = "-----BEGIN PRIVATE KEY-----\nhunter2hunter2==\n-----END PRIVATE KEY-----\n";
        for bad in ["", "hunter2", rsa, empty] {
            let error = format!("{:#}", TokenKey::from_pem(bad).err().unwrap());
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
