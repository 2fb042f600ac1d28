//! `admin renew`: a new certificate from the offline root.

use crate::{
    context::Context,
    error::{Result, fault, lift},
};
use holdfast_core::ErrorKind;
use holdfast_net::{keys::TlsKey, kit::RecoveryKit, pki::TlsIdentity};
use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

pub(super) fn renew(config_dir: PathBuf, kit: &Path) -> Result<()> {
    let mut context = Context::load(config_dir)?;
    let kit = RecoveryKit::load(kit).map_err(lift)?;
    if kit.cluster != context.cluster || kit.root.certificate() != &context.root {
        return Err(fault(
            ErrorKind::Denied,
            format!(
                "the kit is that of cluster {}, the context that of {}",
                kit.cluster, context.cluster
            ),
        ));
    }
    let key = TlsKey::generate().map_err(lift)?;
    let request = key.certificate_request().map_err(lift)?;
    let chain = kit
        .root
        .issue_admin(context.tls.identity(), &request, SystemTime::now())
        .map_err(lift)?;
    context.tls = TlsIdentity::new(chain, key).map_err(lift)?;
    context.save()?;
    eprintln!(
        "{} has a new certificate. Put the recovery kit away again.",
        context.tls.identity().actor()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::context;
    use holdfast_net::{keys::SealingKey, pki::RootCa};

    #[test]
    fn a_foreign_kit_renews_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let context = context(dir.path());
        context.save().unwrap();
        let kit = RecoveryKit {
            cluster: context.cluster,
            cluster_name: context.cluster_name.clone(),
            recovery_key: SealingKey::generate(),
            admin_keys: context.admin_public_keys.clone(),
            root: RootCa::generate(context.cluster, SystemTime::now()).unwrap(),
        };
        let path = dir.path().join("kit.txt");
        kit.save(&path).unwrap();
        assert_eq!(
            renew(context.dir.clone(), &path).unwrap_err().kind,
            ErrorKind::Denied
        );
        let kept = Context::load(context.dir.clone()).unwrap();
        assert_eq!(kept.tls.chain(), context.tls.chain());
    }
}
