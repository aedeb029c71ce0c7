/**
 * The part of a cached object that outlives the process: two files, in the cache directory or in a layer's own.
 *
 * `<digest>` (`.download` in a layer's directory): the media file, a sparse copy of the object with byte x at byte x (upstream's layout,
 * cache-download-prefetch.md section 1.1).
 * The same with `.map`: which refill units of it can be trusted. 32 bytes of header (magic, version, unit, object size,
 * hash of those), then 8 bytes a unit: the XXH3-64 of the unit's bytes, or 0 for a unit that is not there.
 *
 * Nothing is ever synced and no order of writes to the disk is relied on. A unit's hash is recorded after its bytes
 * were written, but it is believed only when the bytes read back have that hash, once in each process that opens
 * the object. So a unit that was cut short by kill -9, or whose bytes, or whose record, did not reach the disk before
 * the machine stopped, or that has rotted since, is fetched again, and so is one whose record is damaged. Checking
 * costs far less than the read that it comes with, and than an fdatasync.
 *
 * Several processes may have the object open: bytes of a unit never change, so writing it twice is harmless, and
 * a record written by another process is picked up on the next look. Who has the object open holds a shared lock on
 * its map. Creating, dropping and shrinking it needs the directory's lock (see `CacheDirectory`): a pair that does not
 * fit the object is unlinked, so who has it open keeps it intact; units go only while nobody else has the object open.
 */
import { constants } from "node:fs";
import { rm } from "node:fs/promises";
import { OverlaybdError } from "../error.ts";
import { punchHole, tryLock, tryShare } from "../native/descriptor.ts";
import type { ObjectPaths } from "./directory.ts";
import { closeFile, openFile, readExactly, statFile, touchFile, truncateFile, writeExactly } from "./file.ts";

const MAGIC = 0x5041_4d44_424f_0001n;
const HEADER_BYTES = 32;
const RECORD_BYTES = 8;
const ABSENT = 0n;

/** Objects above this size are refused, so that a lying size cannot make us write a huge map: 1 TiB, a 32 MiB map. */
const MAX_OBJECT_BYTES = 2 ** 40;

export class UnitStore {
  private constructor(
    private readonly files: Pair,
    readonly size: number,
    readonly unit: number,
    private readonly records: BigUint64Array,
  ) {}

  /**
   * Opens the pair of files for `digest`, after dropping one that does not fit the object, and creates what is
   * missing. The caller holds the directory's lock.
   * @throws the system's error, with its `code`; OverlaybdError E_LIMIT.
   */
  static async open(paths: ObjectPaths, digest: string, size: number, unit: number): Promise<UnitStore> {
    if (size > MAX_OBJECT_BYTES) {
      throw new OverlaybdError(
        "E_LIMIT",
        `${digest} is said to be ${size} bytes long; the cache takes up to 1 TiB`,
      );
    }
    const header = encodeHeader(digest, size, unit);
    const records = new BigUint64Array(Math.ceil(size / unit));
    const existing = await openPair(paths, constants.O_RDWR);
    if (existing) {
      if (tryShare(existing.map) && (await loadRecords(existing, header, size, records))) {
        await touchFile(existing.media);
        return new UnitStore(existing, size, unit, records);
      }
      await closePair(existing);
    }
    await Promise.all([rm(paths.media, { force: true }), rm(paths.map, { force: true })]);
    const fresh = await openPair(paths, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL);
    if (!fresh) throw new OverlaybdError("E_IO", `${paths.media} vanished while it was created`);
    try {
      tryShare(fresh.map);
      await truncateFile(fresh.media, size);
      // All records are written now, so that a full disk cannot refuse one later; the header comes last.
      await writeExactly(fresh.map, bytesOf(records), HEADER_BYTES);
      await writeExactly(fresh.map, header, 0);
    } catch (cause) {
      await closePair(fresh);
      throw cause;
    }
    return new UnitStore(fresh, size, unit, records);
  }

  /** Descriptor of the media file. */
  get fd(): number {
    return this.files.media;
  }

  /** Re-reads the records of units that are not there yet: another process may have fetched them meanwhile. */
  async refresh(first: number, count: number): Promise<void> {
    const latest = new BigUint64Array(count);
    try {
      await readExactly(this.files.map, "cache map", bytesOf(latest), HEADER_BYTES + first * RECORD_BYTES);
    } catch {
      // Somebody cut the map short. What this process knows of the media is checked before it is believed.
      return;
    }
    // What is not in the map may be under way to it.
    for (let i = 0; i < count; i++) if (latest[i] !== ABSENT) this.records[first + i] = latest[i];
  }

  has(unit: number): boolean {
    return this.records[unit] !== ABSENT;
  }

  /** The bytes of a recorded unit, or null when they are not what was recorded. */
  async restore(unit: number): Promise<Uint8Array | null> {
    const offset = unit * this.unit;
    const bytes = new Uint8Array(Math.min(this.unit, this.size - offset));
    try {
      await readExactly(this.files.media, "cache file", bytes, offset);
    } catch {
      // Unreadable or cut short by somebody: as good as damaged, the origin has it.
      return null;
    }
    return hashUnit(bytes, unit) === this.records[unit] ? bytes : null;
  }

  /**
   * Writes whole units (the last of the object may be short) and records them.
   * @throws the system's error when the disk does not take them; nothing is recorded then.
   */
  async write(first: number, bytes: Uint8Array): Promise<void> {
    await writeExactly(this.files.media, bytes, first * this.unit);
    const count = Math.ceil(bytes.length / this.unit);
    const records = this.records.subarray(first, first + count);
    for (let i = 0; i < count; i++) {
      records[i] = hashUnit(bytes.subarray(i * this.unit, (i + 1) * this.unit), first + i);
    }
    await writeExactly(this.files.map, bytesOf(records), HEADER_BYTES + first * RECORD_BYTES);
  }

  /** Gives up what is recorded of units, so that nobody believes it any more. Their bytes stay. */
  async forget(first: number, count: number): Promise<void> {
    this.records.fill(ABSENT, first, first + count);
    const records = this.records.subarray(first, first + count);
    await writeExactly(this.files.map, bytesOf(records), HEADER_BYTES + first * RECORD_BYTES);
  }

  /** Gives up units and their room on the disk. */
  async drop(first: number, count: number): Promise<void> {
    await this.forget(first, count);
    punchHole(this.files.media, first * this.unit, count * this.unit);
  }

  /** Makes the media file as long as it was, if somebody cut it short; false then. */
  async restoreSize(): Promise<boolean> {
    if ((await statFile(this.files.media)).size === this.size) return true;
    await truncateFile(this.files.media, this.size);
    return false;
  }

  /**
   * Runs `work` while nobody else has the object open; null when somebody has. The caller holds the directory's lock,
   * without which the object could be opened meanwhile.
   */
  async alone<T>(work: () => Promise<T>): Promise<T | null> {
    try {
      return tryLock(this.files.map) ? await work() : null;
    } finally {
      tryShare(this.files.map);
    }
  }

  async close(): Promise<void> {
    await touchFile(this.files.media);
    await closePair(this.files);
  }
}

/** Descriptors. */
type Pair = { readonly media: number; readonly map: number };

async function openPair(paths: { media: string; map: string }, flags: number): Promise<Pair | null> {
  const results = await Promise.allSettled([
    openFile(paths.media, flags, 0o644),
    openFile(paths.map, flags, 0o644),
  ]);
  const [media, map] = results;
  if (media.status === "fulfilled" && map.status === "fulfilled")
    return { media: media.value, map: map.value };
  for (const result of results) if (result.status === "fulfilled") await closeFile(result.value);
  const failures = results.flatMap((r) =>
    r.status === "rejected" ? [r.reason as NodeJS.ErrnoException] : [],
  );
  const serious = failures.find((failure) => failure.code !== "ENOENT");
  if (serious) throw serious;
  return null;
}

async function closePair(pair: Pair): Promise<void> {
  await Promise.all([closeFile(pair.media), closeFile(pair.map)]);
}

/** Fills `records` from the map; false when map or media do not belong to this object. */
async function loadRecords(
  pair: Pair,
  header: Uint8Array,
  size: number,
  records: BigUint64Array,
): Promise<boolean> {
  const [media, map] = await Promise.all([statFile(pair.media), statFile(pair.map)]);
  if (!media.isFile() || media.size !== size) return false;
  if (!map.isFile() || map.size !== HEADER_BYTES + records.byteLength) return false;
  const found = new Uint8Array(HEADER_BYTES);
  await readExactly(pair.map, "cache map", found, 0);
  if (Buffer.compare(found, header) !== 0) return false;
  await readExactly(pair.map, "cache map", bytesOf(records), HEADER_BYTES);
  return true;
}

function encodeHeader(digest: string, size: number, unit: number): Uint8Array {
  const words = new BigUint64Array(HEADER_BYTES / 8);
  words[0] = MAGIC;
  words[1] = BigInt(unit);
  words[2] = BigInt(size);
  words[3] = Bun.hash.xxHash3(bytesOf(words).subarray(0, 24), Bun.hash.xxHash3(digest));
  return bytesOf(words);
}

/** The place is part of the hash, so that a unit's bytes at another unit's place are not believed. */
function hashUnit(bytes: Uint8Array, unit: number): bigint {
  const hash = Bun.hash.xxHash3(bytes, BigInt(unit));
  return hash === ABSENT ? 1n : hash;
}

function bytesOf(words: BigUint64Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}
