//! A throw-away installation: keys, central on loopback, a published release, registered nodes in VMs.
//!
//! It uses the operators' own commands and nothing else, so that demo, scenarios and benchmarks exercise what
//! operators do.

mod central;
mod node;
mod packages;
mod root_shell;
mod timeline;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use orrery_qemu::{BootMedium, Vm};
use serde_json::{Value, json};

pub(crate) use central::Central;
pub(crate) use node::{MediumKind, Node, NodeOptions};
pub(crate) use packages::PackageArchive;
pub(crate) use root_shell::RootShell;
pub(crate) use timeline::Timeline;

use crate::{command, hash, image::Images, ui};

/// Host name by which a guest of QEMU's user network reaches the host's loopback.
const HOST_FROM_GUEST: &str = "10.0.2.2";

/// Finds out, once per boot of this host, whether its KVM really runs our medium, and says what will be used.
pub(crate) fn settle_acceleration(images: &Images) {
    let medium = BootMedium::Cd(images.folder.join("orrery-boot.iso"));
    let spec = Vm::builder("acceleration").boot(medium).memory_mib(512).no_network();
    let used = orrery_qemu::prove_acceleration(
        &spec.evidence_root(images.folder.with_file_name("acceleration")),
        "orrery[boot]",
    );
    ui::say("machines", &format!("run under {}", used.name()));
}

/// The installation. Dropping it ends its central.
pub(crate) struct Lab {
    /// Everything the installation has made.
    pub(crate) folder: PathBuf,
    /// The built artifacts it publishes.
    pub(crate) images: PathBuf,
    /// The running server.
    pub(crate) central: Central,
    orrery: PathBuf,
}

/// What a script says beyond its kind.
pub(crate) struct ScriptOptions<'a> {
    /// Ids of the nodes; `*` is every node.
    pub(crate) node: &'a str,
    /// The serial.
    pub(crate) serial: u64,
    /// How long it is good for, as `30d`.
    pub(crate) expires: &'a str,
    /// Networks that safe mode can be reached from.
    pub(crate) networks: &'a [&'a str],
    /// The key file that signs it.
    pub(crate) key: PathBuf,
    /// The signed manifest of the release it is about.
    pub(crate) release: PathBuf,
}

impl Lab {
    /// Makes an installation in `folder`, which is emptied, and publishes a release with one script of each kind.
    ///
    /// # Errors
    /// Any of the steps.
    pub(crate) fn create(folder: &Path, images: &Images) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let central = Central::create(&folder.join("central"), &images.tools.join("orrery-central"))?;
        let lab = Self {
            folder: folder.to_path_buf(),
            images: images.folder.clone(),
            central,
            orrery: images.tools.join("orrery"),
        };
        lab.orrery(["keys", "new", "--out"], [&lab.release_key()])?;
        let release = lab.folder.join("release");
        lab.orrery(["release", "assemble", "--images"], [lab.images.as_path(), Path::new("--out"), &release])?;
        lab.orrery(["release", "sign", "--key"], [lab.release_key(), release.join("manifest.json")])?;
        lab.orrery(["release", "publish"], [lab.release()])?;
        orrery_qemu::ssh::generate_key(&lab.user_key()).context("making the user's ssh key")?;
        for kind in ["install", "boot", "safe"] {
            lab.publish_script(kind, &lab.usual_script())?;
        }
        Ok(lab)
    }

    /// The offline key of this installation.
    pub(crate) fn release_key(&self) -> PathBuf {
        self.folder.join("release.key")
    }

    /// The private ssh key of the installation's only user.
    pub(crate) fn user_key(&self) -> PathBuf {
        self.folder.join("user_ed25519")
    }

    /// The signed manifest of this installation's release.
    pub(crate) fn release(&self) -> PathBuf {
        self.folder.join("release/manifest.signed")
    }

    /// Imports the OCI layout `layout` in `folder`, tagged `v1`, as image `name`, and publishes a release that has it.
    ///
    /// # Errors
    /// A command fails.
    pub(crate) fn publish_image(&self, name: &str, folder: &Path) -> Result<()> {
        let image = folder.join(format!("{name}.tar.zst"));
        self.orrery(["image", "import", "--tag", "v1", "--out"], [&image, &folder.join("layout")])?;
        let (release, named) = (folder.join("release"), format!("{name}={}", image.display()));
        let arguments = ["release", "assemble", "--image", &named, "--images"];
        self.orrery(arguments, [self.images.as_path(), Path::new("--out"), &release])?;
        self.orrery(["release", "sign", "--key"], [self.release_key(), release.join("manifest.json")])?;
        self.orrery(["release", "publish"], [release.join("manifest.signed")]).map(drop)
    }

    /// Publishes a release like the usual one that also names the reference image `name`: `bytes` zeros, which no disk has to
    /// hold here. Returns its signed manifest.
    ///
    /// # Errors
    /// Any of the steps.
    pub(crate) fn publish_release_with(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let sparse = self.folder.join(name);
        orrery_qemu::create_disk(&sparse, bytes).with_context(|| format!("making {}", sparse.display()))?;
        let sha256 = hash::file(&sparse)?;
        // In central's folder by its name, it need not be uploaded.
        let kept = self.central.data().join("artifacts").join(&sha256);
        fs::rename(&sparse, &kept).with_context(|| format!("moving an artifact to {}", kept.display()))?;

        self.publish_changed_release(&format!("with-{name}"), |manifest| {
            let artifacts = manifest["artifacts"].as_array_mut().context("a manifest without artifacts")?;
            artifacts.insert(0, json!({ "role": "image", "name": name, "ref": { "sha256": sha256, "size": bytes } }));
            Ok(())
        })
    }

    /// Publishes what `change` makes of the usual release under the name `release`. Returns its signed manifest.
    ///
    /// # Errors
    /// Any of the steps.
    pub(crate) fn publish_changed_release(
        &self,
        release: &str,
        change: impl FnOnce(&mut Value) -> Result<()>,
    ) -> Result<PathBuf> {
        let folder = self.folder.join(format!("release-{release}"));
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let mut manifest = self.manifest()?;
        manifest["release"] = json!(release);
        change(&mut manifest)?;
        let unsigned = folder.join("manifest.json");
        fs::write(&unsigned, manifest.to_string()).with_context(|| format!("writing {}", unsigned.display()))?;
        self.orrery(["release", "sign", "--key"], [self.release_key(), unsigned])?;
        let signed = folder.join("manifest.signed");
        self.orrery(["release", "publish"], [&signed])?;
        Ok(signed)
    }

    /// The name of this installation's release.
    ///
    /// # Errors
    /// Its manifest cannot be read.
    pub(crate) fn release_name(&self) -> Result<String> {
        Ok(self.manifest()?["release"].as_str().context("a release without a name")?.to_owned())
    }

    fn manifest(&self) -> Result<Value> {
        let path = self.folder.join("release/manifest.json");
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).context("reading the release manifest")
    }

    /// What a script says unless something else is asked for.
    pub(crate) fn usual_script(&self) -> ScriptOptions<'static> {
        ScriptOptions {
            node: "*",
            serial: 1,
            expires: "30d",
            networks: &["10.0.2.0/24"],
            key: self.release_key(),
            release: self.release(),
        }
    }

    /// Writes and signs a script; the signed file's path.
    ///
    /// # Errors
    /// The commands'.
    pub(crate) fn script(&self, kind: &str, options: &ScriptOptions<'_>) -> Result<PathBuf> {
        let folder = tempfile::Builder::new().prefix(kind).tempdir_in(&self.folder).context("making a folder")?.keep();
        let unsigned = folder.join("script.json");
        let serial = options.serial.to_string();
        let mut arguments = vec!["script", "new", "--kind", kind, "--node", options.node, "--serial", &serial];
        arguments.extend(["--expires", options.expires]);
        arguments.extend(options.networks.iter().flat_map(|network| ["--network", network]));
        let (option, path) = match kind {
            "safe" => ("--ssh-key", self.user_key().with_extension("pub")),
            _ => ("--release", options.release.clone()),
        };
        arguments.push(option);
        self.orrery(arguments, [path.as_path(), Path::new("--out"), &unsigned])?;
        self.orrery(["script", "sign", "--key"], [&options.key, &unsigned])?;
        Ok(folder.join("script.signed"))
    }

    /// Writes, signs and publishes a script.
    ///
    /// # Errors
    /// The commands'.
    pub(crate) fn publish_script(&self, kind: &str, options: &ScriptOptions<'_>) -> Result<()> {
        let script = self.script(kind, options)?;
        self.orrery(["script", "publish"], [&script]).map(drop)
    }

    /// The first trust update after the root in `config`, signed by the key in force and the new ones; its path.
    ///
    /// # Errors
    /// The commands'.
    pub(crate) fn trust_update(&self, config: &Path, keys: &[&PathBuf], authorities: &[&PathBuf]) -> Result<PathBuf> {
        let unsigned = self.folder.join("update.json");
        let signed = self.folder.join("update.signed");
        let mut arguments = vec!["trust".to_owned(), "new".into(), "--threshold".into(), "1".into()];
        arguments.extend(keys.iter().flat_map(|key| ["--release-key".into(), format!("{}.pub", key.display())]));
        arguments.extend(authorities.iter().flat_map(|ca| ["--ca".into(), ca.display().to_string()]));
        arguments.push("--from".into());
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        self.orrery(arguments, [config, Path::new("--out"), &unsigned])?;
        let signers: Vec<_> = keys.iter().map(|key| key.display().to_string()).collect();
        let old = self.release_key().display().to_string();
        let mut arguments = vec!["sign", "--yes", "--key", &old];
        arguments.extend(signers.iter().filter(|key| **key != old).flat_map(|key| ["--key", key.as_str()]));
        arguments.push("--out");
        self.orrery(arguments, [&signed, &unsigned])?;
        Ok(signed)
    }

    /// Adds a slice with slivers on `nodes`, open to the installation's user.
    ///
    /// # Errors
    /// The command's.
    pub(crate) fn add_slice(&self, slice: &str, nodes: &[&str], rspec: &[&str]) -> Result<()> {
        let key = format!("{}.pub", self.user_key().display());
        let mut arguments = vec!["slice", "add", slice, "--image", "debian", "--key", key.as_str()];
        arguments.extend(nodes.iter().flat_map(|node| ["--node", node]));
        arguments.extend(rspec.iter().flat_map(|limit| ["--rspec", limit]));
        self.orrery(arguments, [] as [&Path; 0]).map(drop)
    }

    /// `orrery` as this installation's operator, for what prints more than one value or is to fail.
    pub(crate) fn operator_command(&self) -> Command {
        let mut command = Command::new(&self.orrery);
        command
            .env("ORRERY_OPERATOR", self.central.operator())
            .env("ORRERY_CENTRAL", self.central.url())
            .stdin(Stdio::null());
        command
    }

    /// Runs `orrery --json` as this installation's operator and returns what it printed.
    ///
    /// # Errors
    /// It failed, or printed something else than JSON.
    pub(crate) fn orrery<'a, P: AsRef<Path> + 'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
        paths: impl IntoIterator<Item = P>,
    ) -> Result<Value> {
        let mut command = self.operator_command();
        command.arg("--json").args(arguments);
        command.args(paths.into_iter().map(|p| p.as_ref().as_os_str().to_owned()));
        let printed = command::output(&mut command)?;
        if printed.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&printed).with_context(|| format!("reading what {command:?} printed: {printed:?}"))
    }

    /// The events central has of `node`, oldest first.
    ///
    /// # Errors
    /// The command's.
    pub(crate) fn events(&self, node: &str) -> Result<Vec<Value>> {
        let events = self.orrery(["node", "events", node], [] as [&Path; 0])?;
        events.as_array().cloned().context("`orrery node events` printed no list")
    }

    /// What central knows of `node`.
    ///
    /// # Errors
    /// The command's.
    pub(crate) fn node_detail(&self, node: &str) -> Result<Value> {
        self.orrery(["node", "show", node], [] as [&Path; 0])
    }

    /// Registers a node and stamps a medium of its own for it.
    ///
    /// # Errors
    /// The commands'.
    pub(crate) fn add_node(&self, id: &str, options: NodeOptions) -> Result<Node> {
        Node::create(self, id, options)
    }
}
