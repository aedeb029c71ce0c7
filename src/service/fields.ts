/**
 * Reading a configuration file, JSON unless said otherwise: typed access to its keys, with errors that name file and key. Unknown keys are
 * ignored, key names are case sensitive, nothing is coerced (image-config.md, general parsing rules).
 */
import { readFile } from "node:fs/promises";
import { OverlaybdError } from "../error.ts";

const MAX_UNSIGNED = 2 ** 32 - 1;

/** One object of a configuration file. */
export class Fields {
  private constructor(
    private readonly file: string,
    /** Path of the object inside the file: "" or "lowers[0].". */
    private readonly prefix: string,
    private readonly values: Readonly<Record<string, unknown>>,
  ) {}

  /** @throws OverlaybdError E_CONFIG when the file is missing, unreadable, no JSON or no object. */
  static async load(file: string): Promise<Fields> {
    let text: string;
    try {
      text = await readFile(file, "utf8");
    } catch (cause) {
      throw new OverlaybdError("E_CONFIG", `cannot read ${file}: ${(cause as Error).message}`, { cause });
    }
    return Fields.parse(text, file);
  }

  /** @throws OverlaybdError E_CONFIG */
  static parse(text: string, file: string): Fields {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (cause) {
      // What the parser quotes may be part of a secret.
      const reason = (cause as Error).message.replace(/\s*["'`].*$/s, "");
      throw new OverlaybdError("E_CONFIG", `${file} is not valid JSON: ${reason}`);
    }
    return Fields.of(value, file);
  }

  /** The keys of a file in another notation. @throws OverlaybdError E_CONFIG when `value` is no object */
  static of(value: unknown, file: string): Fields {
    if (!isObject(value)) throw new OverlaybdError("E_CONFIG", `${file} does not hold an object`);
    return new Fields(file, "", value);
  }

  /** In the order of the file. */
  keys(): string[] {
    return Object.keys(this.values);
  }

  has(key: string): boolean {
    return Object.hasOwn(this.values, key);
  }

  string(key: string, fallback = ""): string {
    return this.#typed(key, fallback, "a string", (value): value is string => typeof value === "string");
  }

  boolean(key: string, fallback = false): boolean {
    return this.#typed(
      key,
      fallback,
      "true or false",
      (value): value is boolean => typeof value === "boolean",
    );
  }

  /** A whole number from 0 to `max`. */
  unsigned(key: string, fallback: number, max = MAX_UNSIGNED): number {
    return this.integer(key, fallback, 0, max);
  }

  /** A whole number from `min` to `max`. */
  integer(key: string, fallback: number, min = -(2 ** 31), max = 2 ** 31 - 1): number {
    return this.#typed(
      key,
      fallback,
      `a whole number from ${min} to ${max}`,
      (value): value is number =>
        Number.isInteger(value) && (value as number) >= min && (value as number) <= max,
    );
  }

  /** An object; one without keys when it is missing. */
  object(key: string): Fields {
    const value = this.#typed(key, {}, "an object", isObject);
    return new Fields(this.file, `${this.prefix}${key}.`, value);
  }

  /** The elements of a list; a value that is no list is one of one element. None when it is missing. */
  list(key: string): readonly unknown[] {
    if (!this.has(key)) return [];
    const value = this.values[key];
    return Array.isArray(value) ? value : [value];
  }

  /** As `list`, of strings. */
  strings(key: string): readonly string[] {
    return this.list(key).map((value) => {
      if (typeof value !== "string") throw this.wrong(key, "must be a string or a list of strings");
      return value;
    });
  }

  /** The objects of a list; none when it is missing. */
  objects(key: string): Fields[] {
    const list = this.#typed(key, [], "a list", (value): value is unknown[] => Array.isArray(value));
    return list.map((value, i) => {
      if (!isObject(value)) throw this.wrong(`${key}[${i}]`, "must be an object");
      return new Fields(this.file, `${this.prefix}${key}[${i}].`, value);
    });
  }

  /** The error for a value that has the right type and still is wrong. */
  wrong(key: string, what: string): OverlaybdError {
    return new OverlaybdError("E_CONFIG", `${this.file}: ${this.prefix}${key} ${what}`);
  }

  #typed<T>(key: string, fallback: T, wanted: string, fits: (value: unknown) => value is T): T {
    if (!this.has(key)) return fallback;
    const value = this.values[key];
    if (!fits(value)) throw this.wrong(key, `must be ${wanted}, not ${describe(value)}`);
    return value;
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A value for a message; what is inside an object or a list may be secret. */
function describe(value: unknown): string {
  if (typeof value === "object" && value !== null) return Array.isArray(value) ? "a list" : "an object";
  const text = JSON.stringify(value);
  return text.length > 40 ? `${text.slice(0, 40)}…` : text;
}
