/**
 * JSON in the one spelling that every image tool written in Go produces, so that documents rebuilt from the same
 * values have the same digests: compact, struct fields in the order of the object, map keys sorted bytewise, `<`, `>`,
 * `&`, U+2028 and U+2029 escaped, no trailing newline.
 */
import { OverlaybdError } from "../error.ts";

/** A value to encode. A `Map` is written like a Go map (sorted keys), an object like a struct (in its own order). */
export type JsonValue =
  | string
  | number
  | boolean
  | null
  | undefined
  | readonly JsonValue[]
  | ReadonlyMap<string, JsonValue>
  | { readonly [field: string]: JsonValue };

export type JsonObject = { readonly [key: string]: unknown };

/** Encodes `value`; fields that are undefined are left out. */
export function encodeJson(value: JsonValue): Uint8Array {
  return Buffer.from(text(value));
}

function text(value: JsonValue): string {
  if (typeof value === "string") return quote(value);
  if (value === undefined || value === null || typeof value !== "object")
    return JSON.stringify(value ?? null);
  if (isArray(value)) return `[${value.map(text).join(",")}]`;
  const entries = isMap(value) ? [...value].sort(byKeyBytes) : Object.entries(value);
  const fields = entries.filter(([, field]) => field !== undefined);
  return `{${fields.map(([key, field]) => `${quote(key)}:${text(field)}`).join(",")}}`;
}

function quote(string: string): string {
  return JSON.stringify(string.toWellFormed()).replace(
    /[<>&\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

function byKeyBytes([a]: [string, JsonValue], [b]: [string, JsonValue]): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

// Array.isArray and instanceof do not narrow readonly types away.
const isArray = (value: JsonValue): value is readonly JsonValue[] => Array.isArray(value);
const isMap = (value: JsonValue): value is ReadonlyMap<string, JsonValue> => value instanceof Map;

/**
 * Parses bytes that must hold one JSON object.
 * @param name what the bytes are, for errors
 * @throws OverlaybdError E_CORRUPT
 */
export function parseJsonObject(bytes: Uint8Array, name: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    // The parser's own message quotes the text, which may hold secrets (credential files, token answers).
    throw new OverlaybdError("E_CORRUPT", `${name}: is not JSON`);
  }
  if (!isObject(value)) throw new OverlaybdError("E_CORRUPT", `${name}: is not a JSON object`);
  return value;
}

/** Whether `value` is a JSON object: neither an array nor null. */
export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
