//! LMDB itself: what is refused, what is told, what grows.

use super::*;
use crate::ledger::schema::tests::arrival;

fn commit(seq: u64) -> Commit {
    let arrival = Arrival { seq, ..arrival() };
    Commit {
        content: arrival.key.map(|key| (key, seq)).into_iter().collect(),
        records: vec![Record {
            seq,
            state: RecordState::Done {
                arrival,
                line: None,
            },
        }],
        next_seq: seq + 1,
        ..Commit::default()
    }
}

#[test]
fn the_last_page_is_read_as_lmdb_reports_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Lmdb::open(&dir.path().join("ledger"), Durability::None).unwrap();
    for seq in 1..200 {
        ledger.commit_records(&commit(seq)).unwrap();
    }
    let info = ledger.env.info();
    let file = File::open(dir.path().join("ledger/data.mdb")).unwrap();
    let txn = ledger.env.read_txn().unwrap();
    let page_bytes = u64::from(ledger.tables.meta.stat(&txn).unwrap().page_size);
    let newest = [0, page_bytes]
        .into_iter()
        .filter_map(|offset| read_meta(&file, offset).unwrap())
        .max_by_key(|meta| meta.txn);
    let expected = Meta {
        page_bytes,
        last_page: info.last_page_number as u64,
        txn: info.last_txn_id as u64,
    };
    assert_eq!(newest, Some(expected));
}

#[test]
fn the_page_size_is_what_the_file_says() {
    let dir = tempfile::tempdir().unwrap();
    drop(Lmdb::open(&dir.path().join("ledger"), Durability::None).unwrap());
    let file = File::open(dir.path().join("ledger/data.mdb")).unwrap();
    let mut page = [0; META_BYTES];
    file.read_exact_at(&mut page, 0).unwrap();
    let at = [16, 24]
        .into_iter()
        .find(|&at| page[at..at + 4] == 0xBEEF_C0DE_u32.to_ne_bytes())
        .unwrap();
    let mut with = |size: u32| {
        page[at + 24..at + 28].copy_from_slice(&size.to_ne_bytes());
        parse_meta(&page).map(|meta| meta.page_bytes)
    };
    for size in [512, 4096, 16384, 65536] {
        assert_eq!(with(size), Some(size.into()));
    }
    for size in [0, 256, 4095, 131_072] {
        assert_eq!(with(size), None);
    }
}

#[test]
fn a_truncated_ledger_is_refused_and_a_whole_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Lmdb::open(&dir.path().join("ledger"), Durability::Full).unwrap();
    for seq in 1..500 {
        ledger.commit_records(&commit(seq)).unwrap();
    }
    let used = (ledger.env.info().last_page_number as u64 + 1) * ledger.page_bytes;
    let page_bytes = ledger.page_bytes;
    drop(ledger);
    let dir = dir.path().join("ledger");
    assert!(refuse_if_damaged(&dir).is_ok());
    let data = dir.join("data.mdb");
    let whole = std::fs::metadata(&data).unwrap().len();
    let shorten = |length| {
        let file = OpenOptions::new().write(true).open(&data).unwrap();
        file.set_len(length).unwrap();
    };
    shorten(whole - 1);
    let failure = Lmdb::open(&dir, Durability::Full).err().unwrap();
    assert!(failure.to_string().contains("truncated"), "{failure}");
    shorten(whole);
    drop(Lmdb::open(&dir, Durability::Full).unwrap());
    for length in [used - 1, used / 2, page_bytes, 1] {
        shorten(length);
        let failure = refuse_if_damaged(&dir).unwrap_err();
        assert_eq!(failure.exit, Exit::Io);
        assert!(failure.to_string().contains("truncated"), "{failure}");
    }
}

#[test]
fn a_full_map_grows_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Lmdb::open(&dir.path().join("ledger"), Durability::None).unwrap();
    let small = 1 << 20;
    // SAFETY: no transaction is open.
    unsafe { ledger.env.resize(small) }.unwrap();
    for seq in 1..5_000 {
        ledger.commit_records(&commit(seq)).unwrap();
    }
    assert!(ledger.env.info().map_size > small);
    assert_eq!(ledger.records_from(1, 10_000).unwrap().len(), 4_999);
}

/// A ledger in `dir` in which `name` of `table` has the bytes `value`.
fn with_value(dir: &Path, table: &str, name: &[u8], value: &[u8]) {
    let ledger = Lmdb::open(dir, Durability::None).unwrap();
    let mut txn = ledger.env.write_txn().unwrap();
    let table: Table = ledger
        .env
        .open_database(&txn, Some(table))
        .unwrap()
        .unwrap();
    table.put(&mut txn, name, value).unwrap();
    txn.commit().unwrap();
}

/// What a value of this program would be if a later one had written it.
fn newer(value: impl Value) -> Vec<u8> {
    let mut bytes = value.encode();
    bytes.truncate(bytes.len() - 8);
    bytes[0] += 1;
    let checksum = xxhash_rust::xxh3::xxh3_64(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn a_ledger_of_a_later_format_is_refused_by_who_writes_and_by_who_reads() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("ledger");
    with_value(&dir, "meta", meta::FORMAT, &(FORMAT + 1).encode());
    let refused = [
        Lmdb::open(&dir, Durability::Full).err().unwrap(),
        Lmdb::open_read_only(&dir).err().unwrap(),
        Lmdb::open_untouched(&dir, true).err().unwrap(),
        Lmdb::open_untouched(&dir, false).err().unwrap(),
    ];
    for failure in refused {
        assert_eq!(failure.exit, Exit::Config);
        assert!(failure.to_string().contains("format 2"), "{failure}");
    }
}

#[test]
fn a_damaged_or_newer_value_is_told_with_its_table() {
    type Read = fn(&Lmdb) -> Option<Failure>;
    let read: [(&str, Read); 6] = [
        ("meta", |ledger| ledger.snapshot().err()),
        ("sources", |ledger| ledger.sources().err()),
        ("intents", |ledger| ledger.snapshot().err()),
        ("records", |ledger| ledger.record_of(7).err()),
        ("lines", |ledger| ledger.snapshot().err()),
        ("kept", |ledger| ledger.kept().err()),
    ];
    for (table, read) in read {
        for (value, exit) in [
            (b"no value".to_vec(), Exit::Io),
            (newer(7u64), Exit::Config),
        ] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("ledger");
            let name: &[u8] = match table {
                "meta" => meta::NEXT_SEQ,
                _ => &7u64.to_be_bytes(),
            };
            with_value(&dir, table, name, &value);
            let failure = read(&Lmdb::open_read_only(&dir).unwrap()).expect(table);
            assert_eq!(failure.exit, exit, "{table}: {failure}");
            let text = failure.to_string();
            assert!(text.contains(&format!("in table {table}")), "{text}");
        }
    }
}

#[test]
fn a_number_that_is_none_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("ledger");
    with_value(&dir, "content", &[7; 64], b"seven");
    let ledger = Lmdb::open_read_only(&dir).unwrap();
    let failure = ledger.by_digest(&[7; 32]).unwrap_err();
    assert_eq!(failure.exit, Exit::Io);
    assert!(failure.to_string().contains("not a sequence number"));
}

#[test]
fn what_is_no_ledger_is_refused_and_left_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let cause = |dir: &Path| {
        let failure = Lmdb::open_read_only(dir).err().unwrap();
        assert_eq!(failure.exit, Exit::Io, "{failure}");
        failure.to_string()
    };
    let dir = root.path().join("empty");
    std::fs::create_dir(&dir).unwrap();
    assert!(cause(&dir).contains("it is missing"));
    std::fs::write(dir.join("data.mdb"), [0; 8192]).unwrap();
    assert!(cause(&dir).contains("not an LMDB file"));
    assert_eq!(std::fs::read(dir.join("data.mdb")).unwrap(), [0; 8192]);

    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(cause(&file).contains("Not a directory"));
    let failure = Lmdb::remove(&file).unwrap_err();
    assert_eq!(failure.exit, Exit::Io);

    // LMDB's own, without the tables of ringest.
    let dir = root.path().join("foreign");
    std::fs::create_dir(&dir).unwrap();
    let env = open_env(&dir, EnvFlags::empty()).unwrap();
    let mut txn = env.write_txn().unwrap();
    env.create_database::<Bytes, Bytes>(&mut txn, Some("meta"))
        .unwrap();
    txn.commit().unwrap();
    drop(env);
    assert!(cause(&dir).contains("tables are missing"));
    std::fs::remove_file(dir.join("lock.mdb")).unwrap();
    std::fs::create_dir(dir.join("lock.mdb")).unwrap();
    assert!(cause(&dir).contains("open the ledger in"));
}

#[test]
fn a_copy_does_not_replace_anything() {
    let root = tempfile::tempdir().unwrap();
    let ledger = Lmdb::open(&root.path().join("ledger"), Durability::None).unwrap();
    let copy = root.path().join("copy");
    std::fs::create_dir_all(copy.join("data.mdb")).unwrap();
    let failure = ledger.copy_to(&copy).err().unwrap();
    assert_eq!(failure.exit, Exit::Io, "{failure}");
    assert!(
        failure.to_string().contains("copy the ledger to"),
        "{failure}"
    );
}

#[test]
fn more_readers_than_the_table_holds_are_told_to_wait_and_the_writer_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("ledger");
    let mut ledger = Lmdb::open(&dir, Durability::None).unwrap();
    let readers: Vec<_> = (0..READERS_MAX)
        .map(|_| ledger.env.clone().static_read_txn().unwrap())
        .collect();
    let failure = ledger.copy_to(&root.path().join("copy")).err().unwrap();
    assert_eq!(failure.exit, Exit::Io);
    assert!(failure.to_string().contains("try again"), "{failure}");
    ledger.found("0123456789abcdef0123456789abcdef").unwrap();
    let uuid = ledger.uuid().unwrap();
    assert_eq!(uuid.as_deref(), Some("0123456789abcdef0123456789abcdef"));
    ledger.snapshot().unwrap();
    drop(readers);
    drop(ledger);
    // Who only reads has to wait.
    let ledger = Lmdb::open_read_only(&dir).unwrap();
    let readers: Vec<_> = (0..READERS_MAX)
        .map(|_| ledger.env.clone().static_read_txn().unwrap())
        .collect();
    let failure = ledger.uuid().unwrap_err();
    assert!(failure.to_string().contains("try again"), "{failure}");
    drop(readers);
    ledger.uuid().unwrap();
}

#[test]
fn a_ledger_that_was_opened_to_be_read_is_not_written() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("ledger");
    drop(Lmdb::open(&dir, Durability::None).unwrap());
    let data = dir.join("data.mdb");
    let whole = std::fs::metadata(&data).unwrap().len();
    // As in a copy that is shorter; see `Lmdb::copy_to`.
    let mut ledger = Lmdb::open_read_only(&dir).unwrap();
    let file = OpenOptions::new().write(true).open(&data).unwrap();
    file.set_len(whole / 2).unwrap();
    ledger.keep_headroom().unwrap();
    assert_eq!(std::fs::metadata(&data).unwrap().len(), whole / 2);
    let failure = ledger.sync().unwrap_err();
    assert!(failure.suspect && failure.exit == Exit::Io, "{failure}");
}
