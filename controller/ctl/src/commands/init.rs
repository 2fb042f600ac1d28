//! `init`: founds a cluster on paper. Nothing runs yet; the first controller founds it for real when it starts.

use crate::{
    cli::InitArgs,
    context::Context,
    error::{Result, fault, io, lift, lift_display},
};
use holdfast_core::{ClusterId, ErrorKind, Name};
use holdfast_net::{
    Identity, Role,
    client::with_port,
    durable,
    keys::{SealingKey, SigningKey, TlsKey},
    kit::RecoveryKit,
    pki::{RootCa, TlsIdentity},
    seed::{ClusterSeed, ControllerIdentity},
};
use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Everyone may read the configuration: it holds no secret.
const CONFIG_MODE: u32 = 0o644;

pub(super) fn run(config_dir: PathBuf, args: &InitArgs) -> Result<()> {
    let address = with_port(&args.address).map_err(lift)?;
    let identity_dir = args.controller_dir.join("identity");
    refuse_leftovers(&config_dir, &identity_dir, &args.recovery_kit)?;

    let Made {
        kit,
        controller,
        context,
    } = make(args, config_dir, address)?;

    // The kit first: a cluster without it could not be recovered. Nothing is lost when a later step fails, since
    // nothing is protected yet.
    kit.save(&args.recovery_kit).map_err(lift)?;
    let kept = fs::create_dir_all(&args.controller_dir)
        .map_err(io(format!("create {}", args.controller_dir.display())))
        .and_then(|()| controller.save(&identity_dir).map_err(lift))
        .and_then(|()| context.save())
        .and_then(|()| write_config(args, &context.addresses[0]));
    if let Err(fault) = kept {
        let _ = fs::remove_file(&args.recovery_kit);
        return Err(fault);
    }
    report(args, &context);
    Ok(())
}

/// Never overwrites keys: whatever they protect would be lost.
fn refuse_leftovers(config_dir: &Path, identity_dir: &Path, kit: &Path) -> Result<()> {
    let conflict = |what: String, hint: &str| Err(fault(ErrorKind::Conflict, what).with_hint(hint));
    if Context::exists(config_dir) {
        return conflict(
            format!(
                "{} holds the admin's context of a cluster already",
                config_dir.display()
            ),
            "set HOLDFAST_CONFIG_DIR to another directory for a second cluster",
        );
    }
    if ControllerIdentity::exists(identity_dir) {
        return conflict(
            format!("{} holds a controller's identity already", identity_dir.display()),
            "choose another --controller-dir",
        );
    }
    if kit.exists() {
        return conflict(
            format!("{} exists already", kit.display()),
            "choose another file for --recovery-kit",
        );
    }
    Ok(())
}

struct Made {
    kit: RecoveryKit,
    controller: ControllerIdentity,
    context: Context,
}

fn make(args: &InitArgs, config_dir: PathBuf, address: String) -> Result<Made> {
    let (cluster, now) = (ClusterId::generate(), SystemTime::now());
    let root = RootCa::generate(cluster, now).map_err(lift)?;
    let issuing = root.make_issuing_ca(cluster, now).map_err(lift)?;
    let recovery_key = SealingKey::generate();
    let signing = SigningKey::generate().map_err(lift)?;

    let named = |role, name: &Name| Identity {
        cluster,
        role,
        name: name.clone(),
        incarnation: 1,
    };
    let admin_key = TlsKey::generate().map_err(lift)?;
    let request = admin_key.certificate_request().map_err(lift)?;
    let admin_chain = root
        .issue_admin(&named(Role::Admin, &args.admin), &request, now)
        .map_err(lift)?;
    let controller_key = TlsKey::generate().map_err(lift)?;
    let request = controller_key.certificate_request().map_err(lift)?;
    let controller_chain = issuing
        .issue(&named(Role::Controller, &args.controller), &request, now)
        .map_err(lift)?;

    let seed = ClusterSeed {
        cluster,
        name: args.name.clone(),
        recovery_recipient: recovery_key.recipient(),
        admin_public_keys: vec![signing.public()],
    };
    let context = Context {
        dir: config_dir,
        cluster,
        cluster_name: args.name.clone(),
        addresses: vec![address],
        recovery_recipient: recovery_key.recipient(),
        admin_public_keys: vec![signing.public()],
        tls: TlsIdentity::new(admin_chain, admin_key).map_err(lift)?,
        root: root.certificate().clone(),
        signing,
        sealing: SealingKey::generate(),
    };
    let kit = RecoveryKit {
        cluster,
        cluster_name: args.name.clone(),
        recovery_key,
        admin_keys: context.admin_public_keys.clone(),
        root,
    };
    let tls = TlsIdentity::new(controller_chain, controller_key).map_err(lift)?;
    Ok(Made {
        kit,
        controller: ControllerIdentity { seed, issuing, tls },
        context,
    })
}

/// Writes a first configuration unless there is one.
fn write_config(args: &InitArgs, address: &str) -> Result<()> {
    let path = args.controller_dir.join("controller.toml");
    if path.exists() {
        return Ok(());
    }
    let dir = std::path::absolute(&args.controller_dir).map_err(io("find the controller's directory"))?;
    let text = config(&dir, address)?;
    durable::create(&path, text.as_bytes(), CONFIG_MODE).map_err(lift)
}

fn config(dir: &Path, address: &str) -> Result<String> {
    let quoted = |path: PathBuf| -> Result<String> {
        let text = path
            .to_str()
            .ok_or_else(|| crate::error::invalid("the directory's name is not UTF-8"))?;
        Ok(toml::Value::from(text).to_string())
    };
    let (host, port) = address
        .rsplit_once(':')
        .ok_or_else(|| lift_display(format!("{address:?} is not HOST:PORT")))?;
    // A name may stand for several addresses, or for another host's in front of this one.
    let host = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(_) => host,
        Err(_) if host == "localhost" => "127.0.0.1",
        Err(_) => "0.0.0.0",
    };
    Ok(format!(
        "# Written by `holdfastctl init`.\n\
         data_dir = {data}\n\
         identity_dir = {identity}\n\n\
         [node]\n\
         id = 1\n\
         listen = \"{host}:{port}\"\n\n\
         [[store]]\n\
         site = \"primary\"\n\
         path = {store}\n\n\
         [telemetry]\n\
         log = \"console\"\n",
        data = quoted(dir.join("data"))?,
        identity = quoted(dir.join("identity"))?,
        store = quoted(dir.join("store"))?,
    ))
}

fn report(args: &InitArgs, context: &Context) {
    eprintln!(
        "Founded cluster {} ({}).\n\
         \n\
         Recovery kit:        {}\n\
         \x20                    Whoever holds it can read every backup. Print it, keep it offline in two places,\n\
         \x20                    and remove it from this machine.\n\
         Admin's context:     {}\n\
         Controller's files:  {}\n\
         \n\
         Next: holdfast-controller run --config {}\n\
         Then: holdfastctl token create HOST --out HOST.token",
        context.cluster_name,
        context.cluster,
        args.recovery_kit.display(),
        context.dir.display(),
        args.controller_dir.display(),
        args.controller_dir.join("controller.toml").display(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path) -> InitArgs {
        InitArgs {
            name: "prod".parse().unwrap(),
            address: "ctl1.example.org".into(),
            recovery_kit: dir.join("kit.txt"),
            controller_dir: dir.join("controller"),
            admin: "alice".parse().unwrap(),
            controller: "ctl1".parse().unwrap(),
        }
    }

    #[test]
    fn everything_is_made_once_and_fits_together() {
        let dir = tempfile::tempdir().unwrap();
        let (args, config_dir) = (args(dir.path()), dir.path().join("admin"));
        run(config_dir.clone(), &args).unwrap();

        let kit = RecoveryKit::load(&args.recovery_kit).unwrap();
        let context = Context::load(config_dir.clone()).unwrap();
        let controller = ControllerIdentity::load(&args.controller_dir.join("identity")).unwrap();
        assert_eq!(kit.cluster, context.cluster);
        assert_eq!(kit.cluster, controller.seed.cluster);
        assert_eq!(kit.root.certificate(), &context.root);
        assert_eq!(controller.root(), &context.root);
        assert_eq!(kit.admin_keys, controller.seed.admin_public_keys);
        let recipient = kit.recovery_key.recipient().to_string();
        assert_eq!(recipient, controller.seed.recovery_recipient.to_string());
        assert_eq!(recipient, context.recovery_recipient.to_string());
        assert_eq!(context.addresses, ["ctl1.example.org:7443"]);
        assert_eq!(context.tls.identity().actor(), "admin/alice");

        let fault = run(config_dir.clone(), &args).unwrap_err();
        assert_eq!(fault.kind, ErrorKind::Conflict);
        let fault = run(dir.path().join("other"), &args).unwrap_err();
        assert!(fault.message.contains("identity"), "{fault}");
        assert_eq!(
            RecoveryKit::load(&args.recovery_kit).unwrap().cluster,
            kit.cluster,
            "the kit was touched"
        );
    }

    #[test]
    fn a_configuration_that_is_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path());
        fs::create_dir_all(&args.controller_dir).unwrap();
        let path = args.controller_dir.join("controller.toml");
        fs::write(&path, "mine").unwrap();
        run(dir.path().join("admin"), &args).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn the_configuration_listens_where_the_address_points() {
        let listen = |address: &str| {
            let text = config(Path::new("/etc/hold\"fast"), address).unwrap();
            let table: toml::Table = text.parse().unwrap();
            assert_eq!(table["data_dir"].as_str(), Some("/etc/hold\"fast/data"));
            table["node"]["listen"].as_str().unwrap().to_owned()
        };
        assert_eq!(listen("ctl1:7443"), "0.0.0.0:7443");
        assert_eq!(listen("127.0.0.1:9"), "127.0.0.1:9");
        assert_eq!(listen("[::1]:9"), "[::1]:9");
        assert_eq!(listen("localhost:9"), "127.0.0.1:9");
    }
}
