//! Slices, as operators make them and nodes have them.

use super::*;

fn plain(version: Option<u64>) -> SliceSpec {
    SliceSpec {
        version,
        keys: vec![SSH_KEY.to_owned()],
        rspec: Rspec::default(),
        image: "debian".to_owned(),
        nodes: vec!["n1".to_owned()],
        startup: Startup::default(),
    }
}

#[test]
fn slices_become_the_wanted_state() {
    let central = Central::start();
    let node = central.node("n1", BootState::Boot);
    assert_eq!(node.get::<WantedState>("/v1/node/wanted").unwrap(), WantedState::default());
    let startup = Startup { initscript: Some("true\n".to_owned()), service: None };
    let rspec = Rspec { mem_limit: 64 << 20, ..Rspec::default() };
    let spec = SliceSpec { rspec, startup, ..plain(None) };
    let put = |change: fn(&mut SliceSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        central.operator.send(Method::PUT, "/v1/slices/demo/one", &spec)
    };
    refused(put(|_| ()), (409, "no-image"));
    let image = central.release().manifest.artifacts[2].clone();
    refused(put(|s| s.nodes.push("n9".to_owned())), (409, "unknown-node"));
    refused(put(|s| s.keys.clear()), (400, "bad-request"));
    refused(put(|s| s.keys[0].push('\n')), (400, "bad-request"));
    refused(put(|s| s.rspec.mem_limit = 1), (400, "bad-request"));
    refused(put(|s| s.startup.initscript = Some("x".repeat(MAX_INITSCRIPT + 1))), (400, "bad-request"));
    refused(central.operator.send(Method::PUT, "/v1/slices/Demo/one", &spec), (400, "bad-request"));
    assert_eq!(node.get::<WantedState>("/v1/node/wanted").unwrap(), WantedState::default());

    put(|_| ()).unwrap();
    let wanted: WantedState = node.get("/v1/node/wanted").unwrap();
    let [sliver] = &wanted.slivers[..] else { panic!("{wanted:?}") };
    assert_eq!((sliver.slice.to_string().as_str(), &sliver.keys), ("demo/one", &spec.keys));
    assert_eq!((&sliver.image.content, sliver.rspec.mem_limit), (&image.content, 64 << 20));
    assert_eq!(sliver.startup, spec.startup);

    let status = NodeStatus {
        boot_id: "b1".to_owned(),
        run_level: RunLevel::Running,
        release: "0.1.0".to_owned(),
        ssh_host_key: SSH_KEY.to_owned(),
        slivers: Vec::new(),
        slot: "a".to_owned(),
        offline: None,
    };
    node.send(Method::POST, "/v1/node/status", &status).unwrap();
    let detail = central.detail("n1");
    assert_eq!((detail.status, detail.summary.run_level), (Some(status), Some(RunLevel::Running)));
    assert_eq!(detail.slices.len(), 1);

    let life = || node.get::<WantedState>("/v1/node/wanted").unwrap().slivers[0].life.clone();
    let suspend = |slice: &str, reason: &str| {
        let path = format!("/v1/slices/{slice}/suspension");
        central.operator.send(Method::PUT, &path, &Suspension { reason: reason.to_owned(), stop: false })
    };
    let birth = life().birth;
    assert_eq!(life(), Life { birth, ..Life::default() });
    assert_ne!(birth, 0);
    refused(suspend("demo/two", "abuse"), (404, "not-found"));
    refused(suspend("demo/one", "a\u{1b}[2J"), (400, "bad-request"));
    suspend("demo/one", "abuse").unwrap();
    assert_eq!(life().suspended.as_deref(), Some("abuse"));
    let over = |slice: &str, how: &str, nodes: &[&str]| -> Result<StartOverAsked, _> {
        let which = StartOver { nodes: nodes.iter().map(|&node| node.to_owned()).collect() };
        central.operator.exchange(Method::POST, &format!("/v1/slices/{slice}/{how}"), &which)
    };
    refused(over("demo/two", "reset", &[]), (404, "not-found"));
    refused(over("demo/one", "reset", &["n9"]), (409, "no-sliver"));
    assert_eq!(life().reset, 0);
    // In the same second, too, each is greater than the last.
    let [first, second] = [&[][..], &["n1"]].map(|nodes| over("demo/one", "reset", nodes).unwrap().number);
    assert!(first < second && life().reset == second, "{first} {second} {:?}", life());
    let restart = over("demo/one", "restart", &[]).unwrap().number;
    // Another change of the slice keeps all that.
    put(|s| s.rspec.cpu_share = 7).unwrap();
    assert_eq!(life(), Life { birth, suspended: Some("abuse".to_owned()), reset: second, restart });
    let stop = Suspension { reason: "rest".to_owned(), stop: true };
    central.operator.send(Method::PUT, "/v1/slices/demo/one/suspension", &stop).unwrap();
    let stopped = life();
    assert!(stopped.suspended.as_deref() == Some("rest") && stopped.restart > restart, "{stopped:?}");
    central.operator.call(Method::DELETE, "/v1/slices/demo/one/suspension").unwrap();
    assert_eq!(life(), Life { suspended: None, ..stopped });

    // Rights over nodes are the operator's word alone, and another change of the slice keeps them.
    let admin = Admin { views: [View::Processes].into(), capabilities: [Capability::NetRaw].into() };
    refused(node.send(Method::PUT, "/v1/slices/demo/one/admin", &admin), (403, "forbidden"));
    refused(central.operator.send(Method::PUT, "/v1/slices/demo/two/admin", &admin), (404, "not-found"));
    let rights = || node.get::<WantedState>("/v1/node/wanted").unwrap().slivers[0].admin.clone();
    assert!(rights().is_none());
    central.operator.send(Method::PUT, "/v1/slices/demo/one/admin", &admin).unwrap();
    put(|s| s.rspec.cpu_share = 8).unwrap();
    assert_eq!(rights(), admin);
    let unknown = serde_json::json!({ "capabilities": ["sys_admin"] });
    refused(central.operator.send(Method::PUT, "/v1/slices/demo/one/admin", &unknown), (400, "bad-request"));
    central.operator.send(Method::PUT, "/v1/slices/demo/one/admin", &Admin::default()).unwrap();
    assert!(rights().is_none());

    central.operator.call(Method::DELETE, "/v1/slices/demo/one").unwrap();
    assert_eq!(node.get::<WantedState>("/v1/node/wanted").unwrap(), WantedState::default());
    central.operator.call(Method::DELETE, "/v1/nodes/n1").unwrap();
    refused(node.get::<WantedState>("/v1/node/wanted"), (403, "unknown-node"));
}

#[test]
fn nobody_undoes_anothers_change_nor_gets_anothers_sliver() {
    let central = Central::start();
    let node = central.node("n1", BootState::Boot);
    central.release();
    central.operator.send(Method::PUT, "/v1/slices/demo/one", &plain(Some(0))).unwrap();
    let birth = || node.get::<WantedState>("/v1/node/wanted").unwrap().slivers[0].life.birth;
    let first = birth();
    // Whoever changed what is not there any more is told, and whoever wanted to make what there is.
    let read = || central.operator.get::<SliceRecord>("/v1/slices/demo/one").unwrap().spec;
    let before = read();
    let save = |spec: &SliceSpec| central.operator.send(Method::PUT, "/v1/slices/demo/one", spec);
    save(&SliceSpec { nodes: Vec::new(), ..before.clone() }).unwrap();
    refused(save(&before), (409, "changed"));
    assert_eq!(read().nodes, [""; 0]);
    refused(save(&SliceSpec { version: Some(0), ..before.clone() }), (409, "changed"));

    // A sliver that is made anew is another one, as is one of another slice of that name.
    let births = [read(), SliceSpec { version: Some(0), ..before }].map(|spec| {
        save(&SliceSpec { nodes: vec!["n1".to_owned()], ..spec }).unwrap();
        let now = birth();
        central.operator.call(Method::DELETE, "/v1/slices/demo/one").unwrap();
        now
    });
    assert!(births[0] != first && births[1] != first && births[0] != births[1], "{first} {births:?}");
}

#[test]
fn a_slice_shows_how_its_slivers_are() {
    let central = Central::start();
    let node = central.node("n1", BootState::Boot);
    central.release();
    let path = "/v1/slices/demo/one";
    let slivers = || central.operator.get::<Vec<SliverRecord>>(&format!("{path}/slivers"));
    refused(slivers(), (404, "not-found"));
    central.operator.send(Method::PUT, path, &plain(Some(0))).unwrap();
    let image = Digest::of(b"image");
    let tell = |change: &dyn Fn(&mut SliverStatus, &SliverSpec)| {
        let wanted: WantedState = node.get("/v1/node/wanted").unwrap();
        let mut sliver = ready(image);
        change(&mut sliver, &wanted.slivers[0]);
        let status = NodeStatus { slivers: vec![sliver], ..status_of_nothing() };
        node.send(Method::POST, "/v1/node/status", &status).unwrap();
        let [record] = slivers().unwrap().try_into().unwrap();
        (record.state, record.told, record.settled, record.error)
    };
    let [record] = slivers().unwrap().try_into().unwrap();
    assert_eq!((record.node.as_str(), record.state, record.told, record.settled), ("n1", None, false, false));
    // Of the one before, of the slice before, not yet, and all of it.
    assert_eq!(tell(&|_, _| ()), (None, false, false, None));
    let ready = Some(SliverState::Ready);
    assert_eq!(tell(&|sliver, spec| sliver.birth = spec.life.birth), (ready, false, false, None));
    let now = |sliver: &mut SliverStatus, spec: &SliverSpec| {
        (sliver.birth, sliver.version) = (spec.life.birth, spec.version);
    };
    let why = Some("no".to_owned());
    let refuse = |sliver: &mut SliverStatus, spec: &SliverSpec| {
        now(sliver, spec);
        (sliver.settled, sliver.error) = (false, Some("no".to_owned()));
    };
    assert_eq!(tell(&refuse), (ready, true, false, why));
    assert_eq!(tell(&now), (ready, true, true, None));
    // Whatever is asked of it is a change that is to be told of.
    let start_over = StartOver { nodes: Vec::new() };
    let asks: [(Method, &str, Value); 4] = [
        (Method::PUT, "suspension", json!({ "reason": "late" })),
        (Method::PUT, "admin", json!({ "views": ["processes"] })),
        (Method::POST, "reset", json!(start_over)),
        (Method::POST, "restart", json!(start_over)),
    ];
    for (method, what, body) in asks {
        assert_eq!(tell(&now), (ready, true, true, None));
        central.operator.send(method, &format!("{path}/{what}"), &body).unwrap();
        let [record] = slivers().unwrap().try_into().unwrap();
        assert!(!record.told && !record.settled, "{what}: {record:?}");
    }
}
