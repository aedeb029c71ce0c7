/**
 * Command lines of the upstream-named tools (`overlaybd-create` and so on), which other programs run: options and
 * positionals mix, `--opt value` and `--opt=value`, combined short flags, flags with an explicit `=false`, and the
 * parser's exit codes (cli.md). Tokenising is `node:util`'s; the rules on top are here.
 */
import { statSync } from "node:fs";
import { parseArgs } from "node:util";
import { explain } from "./_failure.ts";

/** `existing` is a path that must name a file (a FIFO counts); `unsigned` a non-negative whole number. */
type Kind = "flag" | "text" | "existing" | "unsigned";

interface Argument<K extends Kind, R extends boolean> {
  readonly kind: K;
  /** Option spellings (`-s`, `--turboOCI`); absent for a positional. */
  readonly names?: readonly string[];
  /** Positional's name in usage. */
  readonly label?: string;
  /** The argument is always there: required, or it has a default. */
  readonly present: R;
  readonly required: boolean;
  readonly fallback?: Value<K>;
  readonly help: string;
}

type Value<K extends Kind> = K extends "flag" ? boolean : K extends "unsigned" ? number : string;
type AnyArgument = Argument<Kind, boolean>;
type Arguments = Readonly<Record<string, AnyArgument>>;

export type Parsed<A extends Arguments> = {
  [K in keyof A]: A[K] extends Argument<infer V, infer R>
    ? R extends true
      ? Value<V>
      : Value<V> | undefined
    : never;
};

/** An option that is true or false; false unless given. */
export function flag(names: readonly string[], help: string, fallback = false): Argument<"flag", true> {
  return { kind: "flag", names, present: true, required: false, fallback, help };
}

/** An option with a value and a default. */
export function optionOr<K extends Exclude<Kind, "flag">>(
  names: readonly string[],
  kind: K,
  fallback: Value<K>,
  help: string,
): Argument<K, true> {
  return { kind, names, present: true, required: false, fallback, help };
}

/** An option with a value that may be absent. */
export function option<K extends Exclude<Kind, "flag">>(
  names: readonly string[],
  kind: K,
  help: string,
): Argument<K, false> {
  return { kind, names, present: false, required: false, help };
}

/** A required positional. */
export function positional<K extends Exclude<Kind, "flag">>(
  label: string,
  kind: K,
  help: string,
): Argument<K, true> {
  return { kind, label, present: true, required: true, help };
}

/** A positional that may be absent. */
export function optionalPositional<K extends Exclude<Kind, "flag">>(
  label: string,
  kind: K,
  help: string,
): Argument<K, false> {
  return { kind, label, present: false, required: false, help };
}

export interface Tool<A extends Arguments = Arguments> {
  /** Upstream's name, under which a link to the executable runs it. */
  readonly name: string;
  readonly summary: string;
  readonly arguments: A;
  /** Returns the exit code; what it throws is told on stderr and becomes `failureCode`. */
  run(args: Parsed<A>): number | Promise<number>;
  /** Exit code of a failed run; upstream's tools end with 255 (−1) unless stated. */
  readonly failureCode?: number;
}

export function defineTool<const A extends Arguments>(tool: Tool<A>): Tool<A> {
  return tool;
}

/** Exit codes of upstream's option parser (cli.md). */
const EXIT = { conversion: 104, validation: 105, required: 106, unexpected: 109, valueCount: 114 } as const;

class CommandLineError extends Error {
  constructor(
    readonly exitCode: number,
    message: string,
  ) {
    super(message);
  }
}

/** Runs `tool` with the words behind its name and returns its exit code. Never throws for bad input. */
export async function runTool<A extends Arguments>(tool: Tool<A>, words: readonly string[]): Promise<number> {
  let args: Parsed<A> | "help";
  try {
    args = parseTool(tool.arguments, words);
  } catch (error) {
    if (!(error instanceof CommandLineError)) throw error;
    process.stderr.write(`${error.message}\nRun with --help for more information.\n`);
    return error.exitCode;
  }
  if (args === "help") {
    process.stdout.write(usage(tool));
    return 0;
  }
  try {
    return await tool.run(args);
  } catch (error) {
    const explanation = explain(error);
    if (explanation === undefined) throw error;
    process.stderr.write(`${tool.name}: ${explanation}\n`);
    return tool.failureCode ?? 255;
  }
}

/** Marks a word that starts with "-" as none of the options. */
const MARK = "\u0001";

/**
 * Checks as upstream's parser does, and in its order: the number of values, the values, `--help`, what is required,
 * what is too much.
 */
function parseTool<A extends Arguments>(definition: A, words: readonly string[]): Parsed<A> | "help" {
  const { texts, help, unexpected } = collect(definition, words);
  const values: Record<string, boolean | number | string> = {};
  for (const [key, text] of texts) {
    const argument = definition[key];
    const name = argument.label ?? argument.names?.join(",") ?? key;
    values[key] = argument.kind === "flag" ? flagValue(name, text) : convert(name, argument, text);
  }
  if (help) return "help";
  for (const [key, argument] of Object.entries(definition)) {
    if (key in values) continue;
    if (argument.required) throw new CommandLineError(EXIT.required, `${argument.label ?? key} is required`);
    if (argument.fallback !== undefined) values[key] = argument.fallback;
  }
  if (unexpected.length > 0) {
    const list = unexpected.join(" ");
    throw new CommandLineError(EXIT.unexpected, `The following arguments were not expected: ${list}`);
  }
  return values as Parsed<A>;
}

interface Collected {
  /** The text of each argument that was given; "true" for a flag without a value. */
  readonly texts: ReadonlyMap<string, string>;
  readonly help: boolean;
  readonly unexpected: readonly string[];
}

/** Which word belongs to which argument. */
function collect(definition: Arguments, words: readonly string[]): Collected {
  const byName = new Map<string, string>();
  const options: Record<string, { type: "boolean" | "string"; short?: string }> = {
    help: { type: "boolean", short: "h" },
  };
  const positionals: string[] = [];
  for (const [key, argument] of Object.entries(definition)) {
    if (!argument.names) positionals.push(key);
    for (const name of argument.names ?? []) {
      const bare = name.replace(/^--?/, "");
      byName.set(name, key);
      const type = argument.kind === "flag" ? "boolean" : "string";
      options[bare] = name.startsWith("--") ? { type } : { type, short: bare };
    }
  }
  // To upstream's parser a word such as -1 is a (bad) number, not an option.
  const marked = words.map((word) => (/^-\d/.test(word) ? MARK + word : word));
  const { tokens } = parseArgs({
    args: marked,
    options,
    strict: false,
    tokens: true,
    allowPositionals: true,
  });

  const texts = new Map<string, string>();
  const unexpected: string[] = [];
  let help = false;
  for (const token of tokens) {
    if (token.kind === "option-terminator") continue;
    const text = token.value?.startsWith(`${MARK}-`) ? token.value.slice(MARK.length) : token.value;
    if (token.kind === "positional") {
      const key = positionals.shift();
      if (key === undefined) unexpected.push(text as string);
      else texts.set(key, text as string);
      continue;
    }
    const key = byName.get(token.rawName);
    if (token.rawName === "--help" || token.rawName === "-h") {
      help = true;
    } else if (key === undefined) {
      unexpected.push(token.rawName);
    } else if (definition[key].kind === "flag") {
      texts.set(key, text ?? "true");
    } else {
      const count = text === undefined ? "none is given" : texts.has(key) ? "it is given twice" : undefined;
      if (count) throw new CommandLineError(EXIT.valueCount, `${token.rawName}: takes one value, ${count}`);
      texts.set(key, text as string);
    }
  }
  return { texts, help, unexpected };
}

function flagValue(name: string, text: string): boolean {
  if (/^(true|on|yes|1)$/i.test(text)) return true;
  if (/^(false|off|no|0)$/i.test(text)) return false;
  throw new CommandLineError(EXIT.conversion, `Could not convert: ${name} = ${text}`);
}

function convert(name: string, argument: AnyArgument, text: string): number | string {
  if (argument.kind === "unsigned") {
    const value = text.trim() === "" ? Number.NaN : Number(text);
    if (Number.isNaN(value))
      throw new CommandLineError(EXIT.validation, `${name}: not a non-negative number: ${text}`);
    if (value < 0) throw new CommandLineError(EXIT.validation, `${name}: Number less than 0: ${text}`);
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value))
      throw new CommandLineError(EXIT.conversion, `Could not convert: ${name} = ${text}`);
    return value;
  }
  if (argument.kind === "existing") {
    const kind = kindOf(text);
    if (kind === "none") throw new CommandLineError(EXIT.validation, `${name}: File does not exist: ${text}`);
    if (kind === "directory")
      throw new CommandLineError(EXIT.validation, `${name}: File is actually a directory: ${text}`);
  }
  return text;
}

/** A path that cannot be looked up names no file. */
function kindOf(path: string): "none" | "directory" | "file" {
  try {
    return statSync(path).isDirectory() ? "directory" : "file";
  } catch {
    return "none";
  }
}

const VALUE_NAMES = { flag: "", text: "TEXT", existing: "FILE", unsigned: "NUMBER" } as const;

function usage(tool: Tool): string {
  const entries = Object.values(tool.arguments);
  const positionals = entries.filter((a) => !a.names);
  const rows = (list: readonly AnyArgument[]) =>
    list.map((a) => `  ${title(a).padEnd(34)} ${a.help}${describeDefault(a)}\n`).join("");
  const words = positionals.map((a) => (a.required ? a.label : `[${a.label}]`)).join(" ");
  const title = (a: AnyArgument) => `${a.label ?? a.names?.join(",")} ${VALUE_NAMES[a.kind]}`;
  return (
    `${tool.summary}\nUsage: ${tool.name} [OPTIONS] ${words}\n\n` +
    `Positionals:\n${rows(positionals)}\n` +
    `Options:\n  ${"-h,--help".padEnd(34)} Print this help message and exit\n${rows(entries.filter((a) => a.names))}`
  );
}

function describeDefault(argument: AnyArgument): string {
  if (argument.required) return " (required)";
  if (argument.kind === "flag" || argument.fallback === undefined || argument.fallback === "") return "";
  return ` (default ${argument.fallback})`;
}
