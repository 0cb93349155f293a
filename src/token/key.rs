//! A key of tokens: the HS256 secret, or a private key from a PEM file, with what others may know of
//! it. Which key signs and which only verify is `mod`'s business.

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

/// What the block of a PEM file is called that holds a PKCS#8 key.
const PEM_LABEL: &str = "PRIVATE KEY";
/// Bits of a new RSA key: the least that RS256 allows (RFC 7518, 3.3), and what verifiers everywhere
/// are quick with.
const RSA_BITS: usize = 2048;

/// How a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningAlgorithm {
    /// HMAC with SHA-256: who verifies could also sign.
    Hs256,
    /// Ed25519: small keys, small signatures.
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSA with SHA-256: for verifiers that know nothing newer.
    Rs256,
}

impl SigningAlgorithm {
    /// Those whose verifiers need a public key only.
    pub const PUBLIC: [Self; 3] = [Self::EdDsa, Self::Es256, Self::Rs256];

    /// Its name in a token (RFC 7518, 3.1; RFC 8037, 3.1).
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

/// A key that signs and verifies.
pub struct TokenKey {
    algorithm: SigningAlgorithm,
    /// Its public half; none of a secret.
    public: Option<Jwk>,
    private: PrivateKey,
    pub(super) verifying: DecodingKey,
}

enum PrivateKey {
    Library(EncodingKey),
    /// ring signs in constant time, which the library's RSA does not promise.
    Rsa(Box<ring::rsa::KeyPair>),
}

impl TokenKey {
    /// The HS256 key; at least 32 bytes, as the settings make sure of.
    pub fn secret(secret: &SecretString) -> Self {
        let secret = secret.expose_secret().as_bytes();
        Self {
            algorithm: SigningAlgorithm::Hs256,
            public: None,
            private: PrivateKey::Library(EncodingKey::from_secret(secret)),
            verifying: DecodingKey::from_secret(secret),
        }
    }

    /// Reads a private key from a PEM file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let pem = file::read_text(path).map(Zeroizing::new);
        let pem = pem.with_context(|| format!("{}: cannot be read", path.display()))?;
        Self::from_pem(&pem).with_context(|| path.display().to_string())
    }

    /// Reads a private key: PKCS#8, of Ed25519, P-256 or RSA (2048 to 4096 bits).
    pub fn from_pem(pem: &str) -> anyhow::Result<Self> {
        // What the reader says might repeat a piece of the key.
        let Ok((label, document)) = SecretDocument::from_pem(pem) else {
            bail!("no PEM file with one private key; `muster keys make` makes one")
        };
        if label.ends_with("PUBLIC KEY") {
            bail!("holds a public key ({label}); expected the private key that belongs to it");
        }
        if label != PEM_LABEL {
            bail!(
                "holds {label}, and {PEM_LABEL} (PKCS#8, not encrypted) is wanted; convert it with: \
                 openssl pkcs8 -topk8 -nocrypt"
            );
        }
        let Ok(info) = PrivateKeyInfo::try_from(document.as_bytes()) else {
            bail!("holds no PKCS#8 key; `muster keys make` makes one")
        };
        let curve = info.algorithm.parameters_oid().ok();
        match (info.algorithm.oid, curve) {
            (ED25519, _) => {
                // The library wants it without the public half that some programs add.
                let plain = PrivateKeyInfo::new(info.algorithm, info.private_key);
                let plain = SecretDocument::try_from(plain).context("an Ed25519 key")?;
                Self::from_encoding_key(SigningAlgorithm::EdDsa, EncodingKey::from_ed_der(plain.as_bytes()))
            }
            (ELLIPTIC_CURVE, Some(P256)) => {
                Self::from_encoding_key(SigningAlgorithm::Es256, EncodingKey::from_ec_der(document.as_bytes()))
            }
            (RSA, _) => Self::from_rsa_der(document.as_bytes()),
            _ => bail!("holds a key for something else; Ed25519, P-256 and RSA keys sign tokens"),
        }
    }

    fn from_encoding_key(algorithm: SigningAlgorithm, private: EncodingKey) -> anyhow::Result<Self> {
        let public = Jwk::from_encoding_key(&private, algorithm.jwa());
        let Ok(public) = public else { bail!("holds a broken {} key", algorithm.as_str()) };
        Self::with_public(algorithm, public, PrivateKey::Library(private))
    }

    fn from_rsa_der(der: &[u8]) -> anyhow::Result<Self> {
        let pair = match ring::rsa::KeyPair::from_pkcs8(der) {
            Ok(pair) => pair,
            Err(rejected) => {
                bail!("this RSA key will not do: {rejected}; 2048 to 4096 bits wanted")
            }
        };
        let half = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
        let public = Jwk {
            common: CommonParameters {
                key_algorithm: Some(KeyAlgorithm::RS256),
                ..CommonParameters::default()
            },
            algorithm: AlgorithmParameters::RSA(RSAKeyParameters {
                key_type: RSAKeyType::RSA,
                n: BASE64.encode(half.n),
                e: BASE64.encode(half.e),
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
        // The thumbprint (RFC 7638): the same key has the same id wherever it is read.
        public.common.key_id = Some(public.thumbprint(ThumbprintHash::SHA256)?);
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { algorithm, public: Some(public), private, verifying })
    }

    /// How it signs.
    pub fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }

    /// Its id in the tokens it signs; a secret has none.
    pub fn id(&self) -> Option<&str> {
        self.public.as_ref()?.common.key_id.as_deref()
    }

    /// Its public half as JSON (RFC 7517); a secret has none.
    pub fn public_jwk(&self) -> Option<serde_json::Value> {
        serde_json::to_value(self.public.as_ref()?).ok()
    }

    /// Signs claims.
    pub(super) fn sign(&self, claims: &impl Serialize) -> anyhow::Result<String> {
        let mut header = Header::new(self.algorithm.jwa());
        header.kid = self.id().map(str::to_owned);
        let pair = match &self.private {
            PrivateKey::Library(key) => return Ok(jsonwebtoken::encode(&header, claims, key)?),
            PrivateKey::Rsa(pair) => pair,
        };
        let [header, claims] = [serde_json::to_vec(&header)?, serde_json::to_vec(claims)?];
        let mut token = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), token.as_bytes(), &mut signature)
            .map_err(|_| anyhow::anyhow!("the RSA signature failed"))?;
        token.push('.');
        token.push_str(&BASE64.encode(signature));
        Ok(token)
    }
}

/// A new private key as the text of a PEM file. RSA takes a moment.
pub fn generate(algorithm: SigningAlgorithm) -> anyhow::Result<Zeroizing<String>> {
    let document = match algorithm {
        SigningAlgorithm::EdDsa => {
            // The seed is any 32 bytes, written as an octet string within the octet string.
            let mut octets = Zeroizing::new([0; 34]);
            octets[..2].copy_from_slice(&[0x04, 0x20]);
            getrandom::fill(&mut octets[2..]).context("the system gives no randomness")?;
            let kind = pkcs8::AlgorithmIdentifierRef { oid: ED25519, parameters: None };
            SecretDocument::try_from(PrivateKeyInfo::new(kind, &octets[..]))
        }
        SigningAlgorithm::Es256 => {
            let made = EcdsaKeyPair::generate_pkcs8(
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                &SystemRandom::new(),
            );
            let made = made.map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
            SecretDocument::try_from(made.as_ref()).map_err(pkcs8::Error::from)
        }
        SigningAlgorithm::Rs256 => {
            let made = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, RSA_BITS)?;
            rsa::pkcs8::EncodePrivateKey::to_pkcs8_der(&made)
        }
        SigningAlgorithm::Hs256 => {
            bail!("an HS256 key is a secret; make one with: openssl rand -base64 48")
        }
    };
    let pem = document.and_then(|document| Ok(document.to_pem(PEM_LABEL, LineEnding::LF)?));
    pem.map_err(|error| anyhow::anyhow!("a key that was just made cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_can_be_read_and_keeps_its_id() {
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
    fn the_id_is_the_thumbprint() {
        // The key of RFC 8037, appendix A.1, and its thumbprint from A.3.
        let pem = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
            -----END PRIVATE KEY-----\n";
        let key = TokenKey::from_pem(pem).unwrap();
        assert_eq!(key.id(), Some("kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"));
        assert_eq!(key.public_jwk().unwrap()["x"], "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_repeated() {
        let rsa = "-----BEGIN RSA PRIVATE KEY-----\nMC4=\n-----END RSA PRIVATE KEY-----\n";
        let empty = "-----BEGIN PRIVATE KEY-----\nhunter2hunter2==\n-----END PRIVATE KEY-----\n";
        for bad in ["", "hunter2", rsa, empty] {
            let told = format!("{:#}", TokenKey::from_pem(bad).err().unwrap());
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}
