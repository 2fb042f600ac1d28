//! Any text as what people hand over: a join token, a recovery kit, a cluster's seed, names, keys. An error,
//! or a value that is written again so that it reads the same.

#![no_main]

use holdfast_core::{Name, SourceRef};
use holdfast_fuzz::{forged_kit, forged_token};
use holdfast_net::{
    Identity, Role,
    keys::{PublicKey, SealingKey, SealingRecipient},
    kit::RecoveryKit,
    pki::Fingerprint,
    seed::ClusterSeed,
    token::JoinToken,
};
use libfuzzer_sys::fuzz_target;
use std::{fmt::Display, str::FromStr};

fuzz_target!(|bytes: &[u8]| {
    token(&forged_token(bytes));
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    token(text);
    kit(text);
    if let Some(text) = forged_kit(text) {
        kit(&text);
    }
    if let Ok(seed) = ClusterSeed::from_toml(text) {
        let again = ClusterSeed::from_toml(&seed.to_toml().expect("a seed")).expect("what was written");
        assert_eq!((again.cluster, again.name), (seed.cluster, seed.name));
        assert_eq!(again.admin_public_keys, seed.admin_public_keys);
    }
    reads_again::<Identity>(text);
    reads_again::<Name>(text);
    reads_again::<SourceRef>(text);
    reads_again::<Role>(text);
    reads_again::<Fingerprint>(text);
    reads_again::<PublicKey>(text);
    let _ = text.parse::<SealingRecipient>();
    let _ = text.parse::<SealingKey>();
});

fn token(text: &str) {
    let Ok(token) = JoinToken::from_text(text) else {
        return;
    };
    // Long lists of addresses, base64 and all, may pass the bound on texts.
    let Ok(again) = JoinToken::from_text(&token.to_text()) else {
        assert!(token.to_text().len() > 16 * 1024);
        return;
    };
    assert_eq!(again.to_text(), token.to_text());
    assert!(
        token.unwrap(text.as_bytes()).is_err(),
        "unwrapped what nobody wrapped"
    );
}

fn kit(text: &str) {
    let Ok(kit) = RecoveryKit::from_text(text) else {
        return;
    };
    let again = RecoveryKit::from_text(&kit.to_text()).expect("what was written");
    assert_eq!(again.to_text(), kit.to_text());
}

fn reads_again<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let again = value.to_string().parse::<T>();
        assert!(
            again.is_ok_and(|again| again == value),
            "it reads as something else"
        );
    }
}
