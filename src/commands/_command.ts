/**
 * Our own commands: what they take, and how a command line is checked against it. Every word must have a meaning: an
 * option nobody knows, a missing value or a word too many is an error, never ignored.
 */
import { parseArgs } from "node:util";
import { OverlaybdError } from "../error.ts";

interface Described {
  readonly description: string;
}

/** True when given, also as `--name=true`; false as `--no-name` or `--name=false`. */
interface Flag extends Described {
  readonly type: "boolean";
  readonly default: boolean;
  /** One letter. */
  readonly alias?: string;
}

/** With a value; of several the last one counts, unless it is `multiple`. */
interface Option extends Described {
  readonly type: "string";
  readonly alias?: string;
  readonly default?: string;
  readonly required?: true;
  /** May be given several times; all values count. */
  readonly multiple?: true;
}

interface Positional extends Described {
  readonly type: "positional";
  readonly required: true;
}

export type Definitions = Readonly<Record<string, Flag | Option | Positional>>;

type Value<D> = D extends { type: "boolean" }
  ? boolean
  : D extends { multiple: true }
    ? readonly string[]
    : D extends { required: true } | { default: string }
      ? string
      : string | undefined;

export type Values<A extends Definitions> = { -readonly [K in keyof A]: Value<A[K]> };

export interface Command<A extends Definitions = Definitions> {
  readonly meta: { readonly name: string; readonly description: string };
  readonly args: A;
  /** Options that upstream's program of this name has and this one does not have yet. */
  readonly missing?: readonly string[];
  /** Returns the exit code, if it is not 0. `rawArgs` are the words that `args` were made of. */
  run(context: { args: Values<A>; rawArgs: readonly string[] }): Promise<number | undefined>;
}

export function defineCommand<const A extends Definitions>(command: Command<A>): Command<A> {
  return command;
}

/**
 * What `words` mean to a command.
 * @throws OverlaybdError E_USAGE; E_UNSUPPORTED for an option of `missing`
 */
export function parseCommandLine<A extends Definitions>(
  { meta, args, missing = [] }: Pick<Command<A>, "meta" | "args" | "missing">,
  words: readonly string[],
): Values<A> | "help" {
  const wrong = (complaint: string) =>
    new OverlaybdError("E_USAGE", `${complaint}; see "overlaybd ${meta.name} --help"`);
  const definitions: Definitions = args;
  const positionals = Object.keys(definitions).filter((name) => definitions[name].type === "positional");
  const { tokens } = parseArgs({
    args: [...words],
    options: optionsOf(definitions),
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  if (tokens.some((token) => token.kind === "option" && token.name === "help")) return "help";

  const values: Record<string, boolean | string | string[]> = {};
  let filled = 0;
  for (const token of tokens) {
    if (token.kind === "option-terminator") continue;
    if (token.kind === "positional") {
      if (filled === positionals.length)
        throw wrong(`there is one word too many: ${JSON.stringify(token.value)}`);
      values[positionals[filled++]] = token.value;
      continue;
    }
    const { name, rawName } = token;
    if (missing.includes(name)) throw new OverlaybdError("E_UNSUPPORTED", `${rawName} is not supported yet`);
    const definition = Object.hasOwn(definitions, name) ? definitions[name] : undefined;
    if (definition?.type === "boolean") {
      values[name] = parseFlag(token.value) ?? fail(`${rawName}=${token.value} is neither true nor false`);
    } else if (definition?.type === "string") {
      const value = token.value;
      if (value === undefined || (!token.inlineValue && isOption(definitions, value)))
        throw wrong(`${rawName} needs a value`);
      // `-o=TAG` is `-o TAG`, as for upstream's convertor.
      const text = token.inlineValue && !rawName.startsWith("--") ? value.replace(/^=/, "") : value;
      if (definition.multiple) values[name] = [...((values[name] as string[] | undefined) ?? []), text];
      else values[name] = text;
    } else {
      const negated = name.startsWith("no-") ? name.slice(3) : "";
      if (!Object.hasOwn(definitions, negated) || definitions[negated].type !== "boolean")
        throw wrong(`there is no option ${rawName}`);
      if (token.value !== undefined) throw wrong(`${rawName} takes no value`);
      values[negated] = false;
    }
  }
  for (const [name, definition] of Object.entries(definitions)) {
    if (name in values) continue;
    if (definition.type === "positional") throw wrong(`${name.toUpperCase()} is missing`);
    if (definition.type === "string" && definition.required) throw wrong(`--${name} is required`);
    if (definition.type === "string" && definition.multiple) values[name] = [];
    else if (definition.default !== undefined) values[name] = definition.default;
  }
  return values as Values<A>;

  function fail(complaint: string): never {
    throw wrong(complaint);
  }
}

type ParseOptions = Record<string, { type: "boolean" | "string"; short?: string }>;

function optionsOf(definitions: Definitions): ParseOptions {
  const options: ParseOptions = { help: { type: "boolean", short: "h" } };
  for (const [name, definition] of Object.entries(definitions)) {
    if (definition.type === "positional") continue;
    const { type, alias } = definition;
    options[name] = alias === undefined ? { type } : { type, short: alias };
  }
  return options;
}

/** Whether `word` spells an option of the command. */
function isOption(definitions: Definitions, word: string): boolean {
  return Object.entries(definitions).some(
    ([name, definition]) =>
      definition.type !== "positional" && (word === `--${name}` || word === `-${definition.alias}`),
  );
}

function parseFlag(text: string | undefined): boolean | undefined {
  if (text === undefined || /^(1|t|true)$/i.test(text)) return true;
  return /^(0|f|false)$/i.test(text) ? false : undefined;
}
