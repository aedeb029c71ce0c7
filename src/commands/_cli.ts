/** The command line: which words run what, how errors end, the exit codes. */
import { type ArgsDef, type CommandDef, renderUsage } from "citty";
import { OverlaybdError } from "../error.ts";
import { version } from "../version.ts";
import { type Command, parseCommandLine } from "./_command.ts";
import { explain } from "./_failure.ts";
import { runTool, type Tool } from "./_tool.ts";

export { Interrupted } from "./_interrupt.ts";

type Commands = Record<string, () => Promise<Command>>;
type Tools = Record<string, () => Promise<Tool>>;

/** Tools that other programs run under upstream's names, with upstream's options and exit codes. */
const tools: Tools = {
  apply: async () => (await import("./apply.ts")).tool,
  create: async () => (await import("./create.ts")).tool,
  commit: async () => (await import("./commit.ts")).tool,
  merge: async () => (await import("./merge.ts")).tool,
  zfile: async () => (await import("./zfile.ts")).tool,
};

/** Our own commands. */
const commands: Commands = {
  convert: async () => (await import("./convert.ts")).command as Command,
  mount: async () => (await import("./mount.ts")).command as Command,
  umount: async () => (await import("./umount.ts")).command as Command,
  inspect: async () => (await import("./inspect.ts")).command as Command,
  export: async () => (await import("./export.ts")).command as Command,
  registry: async () => (await import("./registry.ts")).command as Command,
};

/** Names of links to this executable, beside `overlaybd-<tool>`. */
const links: Record<string, string> = { convertor: "convert" };

const FAILURE = 1;
const WRONG_USAGE = 2;

/**
 * Runs the program called as `calledAs` with `words`; returns the exit code: 0, 1 for a failure, 2 for a wrong command
 * line, or what an upstream-named tool is documented to return. Our own bugs end with a stack trace.
 */
export async function runCommandLine(calledAs: string, words: readonly string[]): Promise<number> {
  if (Object.hasOwn(links, calledAs)) {
    // Upstream's convertor knows one code for all that can be wrong.
    return Math.min(FAILURE, await run(links[calledAs], words));
  }
  const linked = calledAs.replace(/^overlaybd-/, "");
  if (calledAs !== linked && isKnown(linked)) return run(linked, words);
  const [first, ...rest] = words;
  if (first !== undefined && isKnown(first)) return run(first, rest);
  if (first === "--version" || first === "-V") {
    process.stdout.write(`overlaybd ${version}\n`);
    return 0;
  }
  if (first === "--help" || first === "-h") {
    print(process.stdout, await overview());
    return 0;
  }
  if (first === undefined) print(process.stderr, await overview());
  else process.stderr.write(`overlaybd: unknown command "${first}"; "overlaybd --help" lists them\n`);
  return WRONG_USAGE;
}

function isKnown(name: string): boolean {
  return Object.hasOwn(tools, name) || Object.hasOwn(commands, name);
}

async function run(name: string, words: readonly string[]): Promise<number> {
  return Object.hasOwn(tools, name)
    ? runTool(await tools[name](), words)
    : runOwn(name, await commands[name](), words);
}

async function runOwn(name: string, command: Command, words: readonly string[]): Promise<number> {
  const { consola } = await import("consola");
  // Results go to stdout, and nothing else does.
  consola.options.stdout = process.stderr;
  try {
    const args = parseCommandLine(command, words);
    if (args === "help") {
      print(process.stdout, `${await usage(command)}\n`);
      return 0;
    }
    return (await command.run({ args, rawArgs: words })) ?? 0;
  } catch (error) {
    const explanation = explain(error);
    if (explanation === undefined) throw error;
    process.stderr.write(`overlaybd ${name}: ${explanation}\n`);
    return error instanceof OverlaybdError && error.code === "E_USAGE" ? WRONG_USAGE : FAILURE;
  }
}

/** Writes a text with colours, without them where that is no terminal. */
function print(stream: NodeJS.WriteStream, text: string): void {
  stream.write(stream.isTTY ? text : Bun.stripANSI(text));
}

function usage({ meta, args }: Pick<Command, "meta" | "args">): Promise<string> {
  const help = { type: "boolean", alias: "h", description: "Print this and exit" } as const;
  const named = { ...meta, name: `overlaybd ${meta.name}` };
  return renderUsage({ meta: named, args: { ...args, help } as ArgsDef });
}

async function overview(): Promise<string> {
  const subCommands: Record<string, CommandDef> = {};
  for (const [name, load] of Object.entries(commands)) subCommands[name] = { meta: (await load()).meta };
  for (const [name, load] of Object.entries(tools)) {
    const tool = await load();
    subCommands[name] = { meta: { name, description: `${tool.summary} (as ${tool.name})` } };
  }
  const description = "Container images that start before they are downloaded";
  return `${await renderUsage({ meta: { name: "overlaybd", version, description }, subCommands })}\n`;
}
