/** PAX extended headers (POSIX.1-2001): records "LENGTH KEY=VALUE\n" that override the header block's fields. */
import { FieldError } from "./header.ts";

/** What the records seen so far say; a field is undefined when no record sets it. */
export interface PaxAttributes {
  path?: string;
  linkpath?: string;
  size?: number;
  uid?: number;
  gid?: number;
  mtime?: number;
  mtimeNanoseconds?: number;
  xattrs?: Map<string, Uint8Array>;
  sparse?: PaxSparse;
}

/** GNU.sparse.*: versions 0.0 and 0.1 carry the map in records, 1.0 in front of the data. */
export interface PaxSparse {
  /** "1.0": the map leads the payload. */
  major?: number;
  minor?: number;
  name?: string;
  realSize?: number;
  /** Offsets and lengths in turn. */
  map: number[];
}

const SPACE = 0x20;
const NEWLINE = 0x0a;
const EQUALS = 0x3d;
const MAX_LENGTH_DIGITS = 8;

/** Adds the records of one extended header to `target`. @throws FieldError when they are malformed. */
export function readPax(payload: Buffer, target: PaxAttributes): void {
  for (let at = 0; at < payload.length; ) {
    const space = payload.indexOf(SPACE, at);
    const digits =
      space < 0 ? "" : payload.toString("latin1", at, Math.min(space, at + MAX_LENGTH_DIGITS + 1));
    if (!/^[0-9]+$/.test(digits) || digits.length > MAX_LENGTH_DIGITS)
      throw new FieldError("a PAX record has no length");
    const end = at + Number(digits);
    if (end <= space + 1 || end > payload.length || payload[end - 1] !== NEWLINE)
      throw new FieldError("a PAX record's length is wrong");
    const equals = payload.indexOf(EQUALS, space + 1);
    if (equals < 0 || equals >= end) throw new FieldError("a PAX record has no value");
    setAttribute(
      target,
      payload.toString("latin1", space + 1, equals),
      payload.subarray(equals + 1, end - 1),
    );
    at = end;
  }
}

/** One record. Keys that say nothing about the file's content or metadata (comment, uname, atime …) are ignored. */
function setAttribute(target: PaxAttributes, key: string, value: Buffer): void {
  switch (key) {
    case "path":
      target.path = text(key, value);
      return;
    case "linkpath":
      target.linkpath = text(key, value);
      return;
    case "size":
    case "uid":
    case "gid":
      target[key] = value.length === 0 ? undefined : decimal(key, value.toString("latin1"));
      return;
    case "mtime":
      setTime(target, value.toString("latin1"));
      return;
  }
  if (key.startsWith("SCHILY.xattr."))
    setXattr(target, key.slice("SCHILY.xattr.".length), Buffer.from(value));
  else if (key.startsWith("LIBARCHIVE.xattr.")) setLibarchiveXattr(target, key, value.toString("latin1"));
  else if (key.startsWith("GNU.sparse.")) setSparse(target, key, value);
}

/** An empty value takes the attribute back, says POSIX. */
function text(key: string, value: Buffer): string | undefined {
  if (value.includes(0)) throw new FieldError(`the PAX ${key} contains a NUL`);
  return value.length === 0 ? undefined : value.toString("latin1");
}

export function decimal(key: string, digits: string): number {
  const value = Number(digits);
  if (!/^[0-9]{1,16}$/.test(digits) || !Number.isSafeInteger(value))
    throw new FieldError(`${key} holds no usable number`);
  return value;
}

/** Seconds with an optional fraction, perhaps negative: -1.25 is -2 s and 750,000,000 ns. */
function setTime(target: PaxAttributes, value: string): void {
  const match = /^(-?)([0-9]{1,15})(?:\.([0-9]*))?$/.exec(value);
  if (value !== "" && !match) throw new FieldError("the PAX mtime holds no usable number");
  target.mtime = target.mtimeNanoseconds = undefined;
  if (!match) return;
  const whole = Number(match[2]);
  const fraction = match[3] ?? "";
  const nanoseconds = Number(fraction.slice(0, 9).padEnd(9, "0"));
  if (match[1] === "") {
    target.mtime = whole;
    target.mtimeNanoseconds = nanoseconds;
  } else {
    target.mtime = nanoseconds === 0 ? 0 - whole : -whole - 1;
    target.mtimeNanoseconds = nanoseconds === 0 ? 0 : 1e9 - nanoseconds;
  }
}

function setXattr(target: PaxAttributes, name: string, value: Uint8Array): void {
  if (name === "" || name.includes("\0")) throw new FieldError("an extended attribute has no valid name");
  target.xattrs ??= new Map();
  target.xattrs.set(name, value);
}

/** libarchive's own form: the name percent-encoded, the value in base64. SCHILY.xattr wins, being exact. */
function setLibarchiveXattr(target: PaxAttributes, key: string, value: string): void {
  const name = key
    .slice("LIBARCHIVE.xattr.".length)
    .replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(value)) throw new FieldError(`${key} is not base64`);
  if (!target.xattrs?.has(name)) setXattr(target, name, Buffer.from(value, "base64"));
}

function setSparse(target: PaxAttributes, key: string, value: Buffer): void {
  target.sparse ??= { map: [] };
  const sparse = target.sparse;
  const number = () => decimal(key, value.toString("latin1"));
  switch (key.slice("GNU.sparse.".length)) {
    case "major":
      sparse.major = number();
      return;
    case "minor":
      sparse.minor = number();
      return;
    case "name":
      sparse.name = text(key, value);
      return;
    case "size":
    case "realsize":
      sparse.realSize = number();
      return;
    case "offset":
    case "numbytes":
      sparse.map.push(number());
      return;
    case "map":
      sparse.map =
        value.length === 0
          ? []
          : value
              .toString("latin1")
              .split(",")
              .map((digits) => decimal(key, digits));
      return;
  }
}
