//! Large files: only what changed of one is compressed again.

use pfimg::store::SeekTable;

use super::support::{Pf, Place, write};

const MIB: usize = 1 << 20;

/// A blob in the seekable form, made at another level than this program uses.
fn foreign(content: &[u8]) -> Vec<u8> {
    let (mut file, mut table) = (Vec::new(), Vec::new());
    for stretch in content.chunks(MIB) {
        let frame = zstd::bulk::compress(stretch, 1).unwrap();
        table.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        table.extend_from_slice(&(stretch.len() as u32).to_le_bytes());
        file.extend_from_slice(&frame);
    }
    let frames = (table.len() / 8) as u32;
    file.extend_from_slice(&0x184D_2A5E_u32.to_le_bytes());
    file.extend_from_slice(&(table.len() as u32 + 9).to_le_bytes());
    file.extend_from_slice(&table);
    file.extend_from_slice(&frames.to_le_bytes());
    file.push(0);
    file.extend_from_slice(&0x8F92_EAB1_u32.to_le_bytes());
    file
}

fn table(file: &[u8]) -> SeekTable {
    let frames = u32::from_le_bytes(file[file.len() - 9..][..4].try_into().unwrap()) as usize;
    SeekTable::parse(&file[file.len() - (8 + frames * 8 + 9)..], file.len() as u64).unwrap()
}

#[test]
fn the_unchanged_frames_of_a_large_file_are_reused() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let registry = place.registry();
    let fork = registry.create("f", None).unwrap();
    let mut content: Vec<u8> = (0..700_000)
        .flat_map(|n: u32| format!("line {}\n", n.wrapping_mul(2_654_435_761)).into_bytes())
        .collect();
    content.truncate(9 * MIB + 77);
    let ino = write(&fork, "world/fs/big", &content);
    let blob_of = |image| {
        let tree = place.store.image(&image).unwrap().manifest.world.fs;
        let text = place.store.blobs().read_metadata(&tree).unwrap();
        let tree: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let digest = tree["entries"][0]["blob"].as_str().unwrap().parse().unwrap();
        place.store.blobs().path(&digest)
    };
    let before = blob_of(place.seal(&fork).image);
    assert_ne!(std::fs::read(&before).unwrap(), foreign(&content));
    std::fs::write(&before, foreign(&content)).unwrap();
    let (at, change) = (4 * MIB + 12_345, [b'!'; 4096]);
    content[at..at + change.len()].copy_from_slice(&change);
    fork.write(ino, at as u64, &change, false).unwrap();
    let image = place.seal(&fork).image;
    let (before, after) = (std::fs::read(before).unwrap(), std::fs::read(blob_of(image)).unwrap());
    let (old, new) = (table(&before), table(&after));
    assert_eq!((old.frames().len(), new.frames().len()), (10, 10));
    for (number, (old, new)) in old.frames().iter().zip(new.frames()).enumerate() {
        let bytes = |file: &[u8], frame: &pfimg::store::seekable::Frame| {
            file[frame.at as usize..][..frame.compressed as usize].to_vec()
        };
        assert_eq!(bytes(&before, old) == bytes(&after, new), number != 4, "frame {number}");
    }
    let pf = Pf::open(&place);
    pf.judge(&image);
    assert_eq!(pf.restore(&image, &dir.path().join("restored"))[&b"big"[..]].2, content);
}
