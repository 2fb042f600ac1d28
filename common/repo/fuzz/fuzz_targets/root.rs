//! Any bytes as a root object, and as the private part of an authentic one: decoding is bounded, nothing
//! without the vault's MAC opens, and what opens is written again so that it reads the same.

#![no_main]

use holdfast_core::VaultId;
use holdfast_repo::{Root, RootClear, VaultKeys};
use holdfast_repo_fuzz::{forged_root, keys, links, signer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = RootClear::decode(bytes);
    let stranger = VaultKeys::from_secrets(VaultId([1; 16]), [2; 32], [0x77; 32]);
    assert!(Root::open(bytes, &stranger).is_err(), "opened without its key");
    check(bytes);
    if let [count, nodes, plain @ ..] = bytes {
        check(&forged_root(&links(*count, *nodes), plain));
    }
});

fn check(bytes: &[u8]) {
    let keys = keys();
    let Ok(root) = Root::open(bytes, &keys) else {
        return;
    };
    for tree in &root.sealed.trees {
        assert!(tree.path.starts_with(b"/") && !tree.path.contains(&0));
    }
    let again = root
        .encode(&keys, &signer())
        .expect("what a reader takes, a writer takes");
    let again = Root::open(&again, &keys).expect("what was written");
    assert_eq!(again.sealed, root.sealed);
    assert_eq!(again.clear.source, root.clear.source);
}
