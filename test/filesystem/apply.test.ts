import { describe, expect, test } from "bun:test";
import { OverlaybdError } from "../../src/error.ts";
import { type Member, opaque, whiteout } from "../fixtures/tar.ts";
import { type Disk, GIB, withDisk } from "./disk.ts";

/** Applies layers to a new disk and looks at it. */
function applied(layers: Member[][], look: (disk: Disk) => void): void {
  withDisk(GIB, (disk) => {
    for (const layer of layers) disk.apply(layer);
    look(disk);
  });
}

function failure(layer: Member[], size = GIB): OverlaybdError {
  return withDisk(size, (disk) => {
    disk.apply([{ path: "before", data: "x" }]);
    const before = disk.paths();
    try {
      disk.apply(layer);
    } catch (error) {
      expect(disk.paths()).toEqual(before); // nothing happened, and e2fsck agrees
      if (error instanceof OverlaybdError) return error;
      throw error;
    }
    throw new Error("the layer was applied");
  });
}

describe("what a member becomes", () => {
  test("types, owners, times, permissions", () => {
    const members: Member[] = [
      { path: "./", mode: 0o711, uid: 5, gid: 6, mtime: 77 },
      { path: "f", data: "hello", mode: 0o4755, uid: 4_000_000_000, gid: 3_000_000, mtime: 1.5 },
      { path: "old", data: "", mtime: -86400 },
      { path: "late", data: "", mtime: 4_102_444_800 },
      { path: "p", type: "fifo", mode: 0o600 },
      { path: "null", type: "character", devmajor: 1, devminor: 3 },
      { path: "big", type: "block", devmajor: 259, devminor: 70_000 },
      { path: "a/b/c", data: "x" },
    ];
    applied([members], (disk) => {
      const tree = disk.tree();
      expect(tree.get(".")).toMatchObject({ mode: "0711", uid: 5, gid: 6, mtime: 77 });
      expect(tree.get("f")).toMatchObject({
        mode: "4755",
        uid: 4_000_000_000,
        gid: 3_000_000,
        mtime: 1,
        nanoseconds: 500_000_000,
        size: 5,
      });
      expect(tree.get("old")?.mtime).toBe(-86400);
      expect(tree.get("late")?.mtime).toBe(4_102_444_800);
      expect(tree.get("p")).toMatchObject({ type: "fifo", mode: "0600" });
      expect(tree.get("null")).toMatchObject({ type: "char", rdev: [1, 3] });
      expect(tree.get("big")).toMatchObject({ type: "block", rdev: [259, 70_000] });
      expect(tree.get("a/b")).toMatchObject({ type: "dir", mode: "0755", uid: 0, gid: 0, mtime: 0 });
    });
  });

  test("symbolic links keep their targets as they are, whatever their length", () => {
    const targets = ["../etc//./a", "/x//y/../z", "foo/", "a".repeat(59), "b".repeat(60), "c".repeat(4095)];
    const layer: Member[] = targets.map((linkname, i) => ({ path: `l${i}`, type: "symlink", linkname }));
    applied([layer], (disk) => {
      const tree = disk.tree();
      for (const [i, target] of targets.entries()) expect(tree.get(`l${i}`)?.target).toBe(target);
    });
  });

  test("extended attributes, small and large, with ACLs and capabilities", () => {
    const acl = Buffer.from(
      "0200000001000600ffffffff02000700e803000004000400ffffffff10000700ffffffff20000400ffffffff",
      "hex",
    );
    const capability = Buffer.from("0100000200200000000000000000000000000000", "hex");
    const xattrs = {
      "user.small": "v",
      "user.large": Buffer.alloc(2000, 7),
      "security.capability": capability,
      "trusted.t": "t",
      "system.posix_acl_access": acl,
      "unknown.x": "skipped",
    };
    withDisk(GIB, (disk) => {
      const summary = disk.apply([
        { path: "f", data: "x", xattrs },
        { path: "d/", xattrs: { "user.one": "1" } },
      ]);
      expect(summary.skippedXattrs).toEqual(["unknown.x"]);
      disk.apply([{ path: "d/", xattrs: { "user.two": "2" } }, whiteout("f")]);
      expect(disk.tree().get("d")?.xattrs).toEqual({ "user.one": "MQ==", "user.two": "Mg==" });
      disk.apply([{ path: "f", data: "x", xattrs }]);
      expect(disk.tree().get("f")?.xattrs).toEqual({
        "user.small": "dg==",
        "user.large": Buffer.alloc(2000, 7).toString("base64"),
        "security.capability": capability.toString("base64"),
        "trusted.t": "dA==",
        "system.posix_acl_access": acl.toString("base64"),
      });
    });
  });

  test("hard links, also to what a lower layer has, to symbolic links and to themselves", () => {
    const lower: Member[] = [
      { path: "a", data: "content" },
      { path: "l", type: "symlink", linkname: "nowhere" },
    ];
    const upper: Member[] = [
      { path: "b", type: "hardlink", linkname: "a", mode: 0o600, mtime: 9 },
      { path: "l2", type: "hardlink", linkname: "l" },
      { path: "b", type: "hardlink", linkname: "a", mode: 0o640, mtime: 10 },
    ];
    applied([lower, upper], (disk) => {
      const tree = disk.tree();
      expect(tree.get("a")).toMatchObject({ nlink: 2, mode: "0640", mtime: 10 });
      expect(tree.get("b")).toMatchObject({ hardlink_of: "a" });
      expect(tree.get("l2")).toMatchObject({ type: "symlink", hardlink_of: "l", target: "nowhere" });
    });
  });

  test("content of every size around blocks and chunks", () => {
    const sizes = [0, 1, 511, 4095, 4096, 4097, 8192, 300_000, (1 << 20) - 512, (1 << 20) + 1, 3_500_001];
    const data = (size: number) => Uint8Array.from({ length: size }, (_, i) => (i * 31 + size) & 0xff);
    applied([sizes.map((size) => ({ path: `s${size}`, data: data(size) }))], (disk) => {
      const tree = disk.tree();
      for (const size of sizes) {
        const sha256 = new Bun.CryptoHasher("sha256").update(data(size)).digest("hex");
        expect(tree.get(`s${size}`)).toMatchObject({ size, sha256 });
      }
    });
  });

  test("sparse files keep their holes", () => {
    const map = "2\n3000\n100\n1000000\n5000\n";
    const data = Buffer.concat([Buffer.from(map.padEnd(512, "\0")), Buffer.alloc(5100, 9)]);
    const pax = {
      "GNU.sparse.major": "1",
      "GNU.sparse.minor": "0",
      "GNU.sparse.name": "s",
      "GNU.sparse.realsize": "2000000",
    };
    applied([[{ path: "GNUSparseFile/s", data, pax }]], (disk) => {
      const expected = Buffer.alloc(2_000_000);
      expected.fill(9, 3000, 3100).fill(9, 1_000_000, 1_005_000);
      const sha256 = new Bun.CryptoHasher("sha256").update(expected).digest("hex");
      expect(disk.tree().get("s")).toMatchObject({ size: 2_000_000, sha256 });
    });
  });
});

describe("what a layer does to those below", () => {
  const lower: Member[] = ["d/a", "d/b", "d/sub/c", "e/x", "f"].map((path) => ({ path, data: path }));

  test("whiteouts", () => {
    applied([lower, [whiteout("d/a"), whiteout("e"), whiteout("missing")]], (disk) =>
      expect(disk.paths()).toEqual(["d", "d/b", "d/sub", "d/sub/c", "f"]),
    );
  });

  test("a whiteout spares what the same layer brought, before or after", () => {
    const layer: Member[] = [
      { path: "d/a", data: "new" },
      whiteout("d/a"),
      whiteout("e"),
      { path: "e/y", data: "" },
      whiteout("d"),
    ];
    applied([lower, layer], (disk) => expect(disk.paths()).toEqual(["d", "d/a", "e", "e/y", "f"]));
  });

  test("opaque directories, wherever the marker stands", () => {
    for (const layer of [
      [opaque("d"), { path: "d/new", data: "" }],
      [{ path: "d/new", data: "" }, opaque("d")],
      [{ path: "d/" }, { path: "d/new", data: "" }, opaque("d")],
    ]) {
      applied([lower, layer], (disk) => expect(disk.paths()).toEqual(["d", "d/new", "e", "e/x", "f"]));
    }
  });

  test("an opaque root", () => {
    applied([lower, [{ path: ".wh..wh..opq" }, { path: "new", data: "" }]], (disk) =>
      expect(disk.paths()).toEqual(["new"]),
    );
  });

  test("one type replaces another; directories are kept", () => {
    const layer: Member[] = [
      { path: "d", data: "now a file" },
      { path: "f/" },
      { path: "f/g", data: "" },
      { path: "e/", mode: 0o700 },
    ];
    applied([lower, layer], (disk) => {
      const tree = disk.tree();
      expect([...tree.keys()]).toEqual([".", "d", "e", "e/x", "f", "f/g"]);
      expect(tree.get("e")?.mode).toBe("0700");
    });
  });

  test("parents that are symbolic links are followed inside the root", () => {
    const links: Member[] = [
      { path: "usr/lib/", mtime: 5 },
      { path: "lib", type: "symlink", linkname: "usr/lib" },
      { path: "abs", type: "symlink", linkname: "/usr/lib" },
      { path: "usr/up", type: "symlink", linkname: "../../../../etc" },
      { path: "dangling", type: "symlink", linkname: "made/later" },
    ];
    const files: Member[] = ["lib/1", "abs/2", "usr/up/3", "dangling/4"].map((path) => ({
      path,
      data: path,
    }));
    applied([links, files], (disk) => {
      const tree = disk.tree();
      for (const path of ["usr/lib/1", "usr/lib/2", "etc/3", "made/later/4"])
        expect(tree.get(path)?.type).toBe("file");
      expect(tree.get("usr/lib")?.mtime).toBe(5);
    });
  });

  test("large directories get an index, keep it when names come and go", () => {
    const names = Array.from({ length: 5000 }, (_, i) => `big/${"long-name-".repeat(i % 9)}${i}`);
    const more = names.slice(0, 40).map((name) => ({ path: `${name}-more`, data: "" }));
    const gone = names.slice(100, 400);
    applied([names.map((path) => ({ path, data: "" })), [...more, ...gone.map(whiteout)]], (disk) => {
      const wanted = new Set([...names, ...more.map(({ path }) => path)]);
      for (const name of gone) wanted.delete(name);
      const found = disk.paths().filter((path) => path !== "big");
      expect(new Set(found)).toEqual(wanted);
      const { stdout } = Bun.spawnSync(["debugfs", "-R", "stat big", disk.path]);
      expect(stdout.toString()).toContain("Flags: 0x81000"); // index, extents
    });
  });

  test("the same layers give the same bytes", () => {
    const layer: Member[] = [whiteout("d"), { path: "e/z", data: "zz", xattrs: { "user.a": "b" } }];
    const digests = [1, 2].map(() =>
      withDisk(GIB, (disk) => {
        disk.apply(lower);
        disk.apply(layer);
        return disk.digest();
      }),
    );
    expect(digests[0]).toBe(digests[1]);
  });
});

test("counters in the superblock that lag behind those of the groups are put right", () => {
  withDisk(GIB, (disk) => {
    disk.apply([{ path: "kept", data: "x".repeat(9000) }]);
    const block = new Uint8Array(4096);
    for (const [freeBlocks, freeInodes] of [
      [1, 1],
      [200_000, 60_000],
    ]) {
      disk.volume((volume) => {
        volume.read(0, block);
        const superblock = new DataView(block.buffer, 1024);
        superblock.setUint32(12, freeBlocks, true);
        superblock.setUint32(16, freeInodes, true);
        volume.write(0, block);
      });
      expect(() => disk.tree()).toThrow(/Free blocks count wrong/);
      const data = "y".repeat(50_000);
      disk.apply([1, 2, 3].map((name) => ({ path: `${freeBlocks}/${name}`, data })));
      disk.tree(); // e2fsck
    }
  });
});

describe("what is refused, without a trace", () => {
  const cases: [string, Member[], string, RegExp][] = [
    ["a name that leads out", [{ path: "a/../../x", data: "" }], "E_CORRUPT", /leads out of the root/],
    [
      "a hard link that leads out",
      [{ path: "a", type: "hardlink", linkname: "../x" }],
      "E_CORRUPT",
      /leads out/,
    ],
    [
      "a hard link to nothing",
      [{ path: "a", type: "hardlink", linkname: "b" }],
      "E_CORRUPT",
      /does not exist/,
    ],
    [
      "a hard link to a directory",
      [{ path: "d/" }, { path: "a", type: "hardlink", linkname: "d" }],
      "E_CORRUPT",
      /is a directory/,
    ],
    ["a long name", [{ path: `d/${"n".repeat(256)}`, data: "" }], "E_LIMIT", /longer than 255/],
    [
      "a file as a parent",
      [
        { path: "f", data: "" },
        { path: "f/g", data: "" },
      ],
      "E_CORRUPT",
      /not a directory/,
    ],
    [
      "links in a circle",
      [
        { path: "a", type: "symlink", linkname: "b" },
        { path: "b", type: "symlink", linkname: "a" },
        { path: "a/x", data: "" },
      ],
      "E_CORRUPT",
      /too many symbolic links/,
    ],
    ["a whiteout of the parent", [{ path: "d/.wh...", data: "" }], "E_CORRUPT", /names no file/],
    [
      "attributes without end",
      [{ path: "a", data: "", xattrs: { "user.x": Buffer.alloc(8000, 1) } }],
      "E_LIMIT",
      /attributes are larger/,
    ],
    [
      "more than 65,000 links",
      [
        { path: "a", data: "" },
        ...Array.from(
          { length: 65_000 },
          (_, i): Member => ({ path: `l/${i}`, type: "hardlink", linkname: "a" }),
        ),
      ],
      "E_LIMIT",
      /65,000 hard links/,
    ],
  ];
  for (const [what, layer, code, message] of cases) {
    test(what, () => {
      const error = failure(layer);
      expect(error.code).toBe(code as OverlaybdError["code"]);
      expect(error.message).toMatch(message);
      expect(error.message).toStartWith("layer");
    });
  }

  test("more than there is space for", () => {
    const error = failure([{ path: "huge", data: new Uint8Array(20 << 20) }], 16 << 20);
    expect(error.code).toBe("E_LIMIT");
    expect(error.message).toMatch(/no space is left/);
  });

  test("more files than inodes", () => {
    const error = failure(
      Array.from({ length: 2000 }, (_, i) => ({ path: `f${i}`, data: "" })),
      16 << 20,
    );
    expect(error.message).toMatch(/no inodes are left/);
  });

  test("more metadata than memory", () => {
    withDisk(GIB, (disk) => {
      const files = Array.from({ length: 5000 }, (_, i) => ({ path: `f${i}`, data: "" }));
      expect(() => disk.apply(files, { memoryLimit: 1 << 20 })).toThrow(/larger than fits in memory/);
    });
  });

  test("a file system that is none, or damaged", () => {
    withDisk(GIB, (disk) => expect(() => disk.apply([], { create: false })).toThrow(/no ext4/));
    withDisk(GIB, (disk) => {
      disk.apply([{ path: "d/x", data: "" }]);
      const root = new Uint8Array(4096);
      disk.volume((volume) => {
        // Find the root's block by its `.` and `..`, and make its first entry too short.
        for (let offset = 0; offset < 64 << 20; offset += 4096) {
          volume.read(offset, root);
          if (root[0] === 2 && root[4] === 12 && root[8] === 0x2e && root[12] === 2) {
            root[4] = 4;
            volume.write(offset, root);
          }
        }
      });
      expect(() => disk.apply([{ path: "y", data: "" }])).toThrow(/damaged/);
    });
  });
});
