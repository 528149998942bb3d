use super::machine::MOST_OBJECTS;
use super::*;

fn read(bytes: &[u8]) -> Result<Pickle, String> {
    Pickle::read(bytes)
}

/// `(b'\x80\x02' + body + b'.')`
fn program(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

fn error(body: &[u8]) -> String {
    read(&program(body)).unwrap_err()
}

#[test]
fn plain_data_is_read_with_references_to_earlier_objects() {
    // {'a': [1, -2, 70000, True, None, 1.5, 2**40], 'b': (the same list, 'é')}
    let body = b"}q\x00(X\x01\0\0\0a]q\x01(K\x01J\xfe\xff\xff\xffJ\x70\x11\x01\0\x88NG\x3f\xf8\0\0\0\0\0\0\x8a\x06\0\0\0\0\0\x01eX\x01\0\0\0bh\x01X\x02\0\0\0\xc3\xa9\x86u";
    let p = read(&program(body)).unwrap();
    assert_eq!(p.length, body.len() + 3);
    let list = p.get(p.root(), "a").unwrap();
    let Node::List(items) = p.node(list) else { panic!() };
    let items: Vec<&Node> = items.iter().map(|&i| p.node(i)).collect();
    assert_eq!(
        items,
        [&Node::Int(1), &Node::Int(-2), &Node::Int(70000), &Node::Bool(true), &Node::None, &Node::Float(1.5), &Node::Int(1 << 40)]
    );
    let Node::Tuple(pair) = p.node(p.get(p.root(), "b").unwrap()) else { panic!() };
    assert_eq!((pair[0], p.text(pair[1])), (list, Some("é")));
}

#[test]
fn frames_short_strings_and_memoized_names_of_protocol_4_are_read() {
    // pickle.dumps(collections.OrderedDict(a=b'xy'), 4)
    let bytes = b"\x80\x04\x95\x2b\0\0\0\0\0\0\0\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94\x8c\x01a\x94C\x02xy\x94s.";
    let p = read(bytes).unwrap();
    assert_eq!(p.node(p.get(p.root(), "a").unwrap()), &Node::Bytes(b"xy".to_vec()));
}

#[test]
fn numpy_numbers_are_read_and_other_byte_orders_refused() {
    let scalar = |module: &[u8], order: u8| {
        [
            b"c".as_slice(),
            module,
            b"\nscalar\ncnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R(K\x03X\x01\0\0\0",
            &[order],
            b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbc_codecs\nencode\nX\x09\0\0\0\0\0\0\0\0\0\xc3\xb8?X\x06\0\0\0latin1\x86R\x86R",
        ]
        .concat()
    };
    for module in [b"numpy.core.multiarray".as_slice(), b"numpy._core.multiarray"] {
        let p = read(&program(&scalar(module, b'<'))).unwrap();
        assert_eq!(p.node(p.root()), &Node::Float(1.5));
    }
    assert!(error(&scalar(b"numpy.core.multiarray", b'>')).contains("byte order `>`"));
}

#[test]
fn whatever_calls_something_else_is_refused_by_name() {
    for (body, name) in [
        (b"cos\nsystem\nX\x04\0\0\0rm x\x85R".as_slice(), "`os.system`"),
        (b"cposix\nsystem\n", "`posix.system`"),
        (b"cbuiltins\neval\n", "`builtins.eval`"),
        (b"c__builtin__\nexec\n", "`__builtin__.exec`"),
        (b"cbuiltins\ngetattr\n", "`builtins.getattr`"),
        (b"coperator\nattrgetter\n", "`operator.attrgetter`"),
        (b"ctorch\nFloatStorage.__init__\n", "`torch.FloatStorage.__init__`"),
        (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n", "`torch._utils._rebuild_tensor_v2.__globals__`"),
        (b"X\x0a\0\0\0subprocessX\x05\0\0\0Popen\x93", "`subprocess.Popen`"),
        (b"ctorch\nload\n", "`torch.load`"),
        (b"cnumpy.core.multiarray\n_reconstruct\n", "`numpy.core.multiarray._reconstruct`"),
        (b"c__main__\nNet\n", "`__main__.Net`"),
    ] {
        let e = error(body);
        assert!(e.contains(name) && e.contains("nothing in a pickle is ever run"), "{e}");
    }
    assert!(error(b"ccollections\nOrderedDict\n)\x81").contains("an object of a class"));
    assert!(error(b"(ios\nsystem\n").contains("an object of `os.system`"));
    // What is allowed may not be called with something else.
    assert!(error(b"ccollections\nOrderedDict\n]\x85R").contains("OrderedDict with 1 arguments"));
    assert!(error(b"K\x01)R").contains("calls an integer"));
    assert!(error(b"ccollections\nOrderedDict\n(o").contains("an object of a class"));
    assert!(error(b"ccollections\nOrderedDict\n)}\x92").contains("an object of a class"));
    for (object, what) in [(b"]".as_slice(), "a list"), (b"K\x01", "an integer"), (b"ccollections\nOrderedDict\n", "a function")] {
        assert!(error(&[object, b"}b"].concat()).contains(&format!("sets the state of {what}")));
    }
    assert!(error(b"]K\x01\x93").contains("by something that is no text"));
    // Functions by their number in a registry of the reader's, and sets: no checkpoint has them.
    for op in [0x82, 0x83, 0x84, 0x8f, 0x90, 0x91, b'P', b'0', b'2'] {
        assert!(error(&[b'N', op]).contains(&format!("instruction {op:#04x}")));
    }
}

#[test]
fn long_and_hostile_names_are_cut_in_messages() {
    let e = error(&[b"c".as_slice(), &vec![b'm'; 100_000], b"\n\x1b[31m\x07\n"].concat());
    assert!(e.contains("names `mmm") && e.len() < 500 && !e.contains(['\x1b', '\x07']), "{e}");
    let key = [b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x10\x27\0\0".as_slice(), &vec![b'k'; 10_000], b"NK\x01tQ"].concat();
    assert!(error(&key).contains("key has 10000 bytes"));
}

#[test]
fn storages_that_lie_are_refused() {
    let name = |word: &str, kind: &str, key: &[u8], count: &[u8], view: &[u8]| {
        let text = |s: &str| [b"X".as_slice(), &(s.len() as u32).to_le_bytes(), s.as_bytes()].concat();
        [b"(".as_slice(), &text(word), kind.as_bytes(), key, b"N", count, view, b"tQ"].concat()
    };
    let (float, zero) = ("ctorch\nFloatStorage\n", b"X\x01\0\0\x000".as_slice());
    assert!(read(&program(&name("storage", float, zero, b"K\x06", b"(K\0K\x02K\x04t"))).is_ok());
    for (body, what) in [
        (name("module", float, zero, b"K\x06", b""), "that is no storage"),
        (name("storage", "N", zero, b"K\x06", b""), "that is no storage"),
        (name("storage", "ccollections\nOrderedDict\n", zero, b"K\x06", b""), "that is no storage"),
        (name("storage", float, b"K\x01", b"K\x06", b""), "that is no storage"),
        (name("storage", float, zero, b"N", b""), "number of elements is nothing"),
        (name("storage", float, zero, b"J\xff\xff\xff\xff", b""), "-1 elements"),
        (name("storage", float, zero, b"\x8a\x09\0\0\0\0\0\0\0\0\x01", b""), "number of elements is an integer"),
        (name("storage", float, zero, b"K\x06", b"(K\0K\x03K\x04t"), "elements 3 to 3 + 4 of a storage of 6"),
        (
            name(
                "storage",
                float,
                zero,
                b"K\x06",
                b"(K\0\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7ft",
            ),
            "of a storage of 6",
        ),
        (name("storage", float, zero, b"K\x06", b"(K\0K\x03t"), "without offset and size"),
        (name("storage", float, zero, b"K\x06", b"K\x03"), "a tuple is expected"),
        (name("storage", float, zero, b"K\x06", b"NN"), "7 parts"),
    ] {
        let e = error(&body);
        assert!(e.contains(what), "{what}: {e}");
    }
}

/// Tuples of the tuple before, twice: 2^40 elements if they were written out.
#[test]
fn references_that_double_take_no_more_memory_than_the_pickle() {
    let mut body = b"]".to_vec();
    for _ in 0..40 {
        body.extend(b"q\0h\0\x86");
    }
    let p = read(&program(&body)).unwrap();
    assert_eq!(p.nodes().len(), 41);
    // A list that is appended to itself a thousand times.
    let body = [b"]q\0(".as_slice(), &b"h\0".repeat(1000), b"e"].concat();
    let p = read(&program(&body)).unwrap();
    assert_eq!((p.nodes().len(), p.node(p.root())), (1, &Node::List(vec![p.root(); 1000])));
}

const STORAGE: &[u8] = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ";

fn tensor(offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let int = |v: i32| [b"J".as_slice(), &v.to_le_bytes()].concat();
    let tuple = |v: &[i32]| [b"(".to_vec(), v.iter().flat_map(|&x| int(x)).collect(), b"t".to_vec()].concat();
    let parts: [&[u8]; 6] = [b"ctorch._utils\n_rebuild_tensor\n(", STORAGE, &int(offset), &tuple(shape), &tuple(strides), b"tR"];
    parts.concat()
}

#[test]
fn tensors_must_stay_inside_their_storage() {
    let p = read(&program(&tensor(1, &[2, 2], &[3, 1]))).unwrap();
    let Node::Tensor(v) = p.node(p.root()) else { panic!() };
    assert_eq!((v.offset, v.len, v.shape.as_slice(), v.strides.as_slice()), (1, 4, [2, 2].as_slice(), [3, 1].as_slice()));
    let scalar = tensor(5, &[], &[]);
    assert!(read(&program(&scalar)).is_ok());
    for (offset, shape, strides) in [
        (0, vec![7], vec![1]),
        (6, vec![], vec![]),
        (2, vec![2, 2], vec![3, 2]),
        (0, vec![i32::MAX; 4], vec![i32::MAX; 4]),
        (i32::MAX, vec![2], vec![i32::MAX]),
        // Not outside, but more elements than are stored.
        (0, vec![i32::MAX], vec![0]),
        (0, vec![7], vec![0]),
    ] {
        let e = error(&tensor(offset, &shape, &strides));
        assert!(e.contains("does not fit its storage"), "{e}");
    }
    assert!(error(&tensor(-1, &[1], &[1])).contains("offset -1"));
    assert!(error(&tensor(0, &[-1], &[1])).contains("size"));
    assert!(error(&tensor(0, &[1], &[])).contains("strides"));
    assert!(error(&tensor(0, &[1; 17], &[1; 17])).contains("17 axes"));
}

#[test]
fn damage_is_said_and_never_panics() {
    for (body, what) in [
        (b"".as_slice(), "than there are"),
        (b"\x85", "than there are"),
        (b"(K\x01K\x02\x87", "than there are"),
        (b"h\x05", "object 5"),
        (b"}(K\x01u", "without a value"),
        (b"K\x01K\x02a", "appends to an integer"),
        (b"K\x01K\x02K\x03s", "sets keys of an integer"),
        (b"\xff", "instruction 0xff"),
        (b"K\x01Q", "a tuple is expected"),
        (b")Q", "0 parts"),
    ] {
        let e = error(body);
        assert!(e.contains(what), "{e}");
    }
    assert!(read(b"\x80\x01.").unwrap_err().contains("protocol 1"));
    // Lengths that lie.
    for body in
        [b"X\xff\xff\xff\xff".as_slice(), b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\xff", b"cos"]
    {
        assert!(error(body).contains("ends within its pickle"), "{body:?}");
    }
    let whole = program(&tensor(1, &[2, 2], &[3, 1]));
    for n in 0..whole.len() {
        assert!(read(&whole[..n]).is_err());
    }
}

#[test]
fn cycles_and_deep_nesting_are_only_places_in_a_list() {
    // A list that holds itself.
    let p = read(&program(b"]q\x00h\x00a")).unwrap();
    let Node::List(items) = p.node(p.root()) else { panic!() };
    assert_eq!(items, &[p.root()]);
    // A million tuples, each in the next.
    let deep = [b")".to_vec(), vec![0x85; 1_000_000]].concat();
    drop(read(&program(&deep)).unwrap());
    assert!(error(&vec![b'N'; MOST_OBJECTS + 1]).contains("objects"));
}
