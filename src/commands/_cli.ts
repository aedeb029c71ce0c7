/** The command line: which words run what, how errors end, the exit codes. */
import { type CommandDef, defineCommand, renderUsage, runCommand } from "citty";
import { OverlaybdError } from "../error.ts";
import { version } from "../version.ts";
import { runTool, type Tool } from "./_tool.ts";

type Commands = Record<string, () => Promise<CommandDef>>;
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
  convert: async () => (await import("./convert.ts")).command as CommandDef,
  mount: async () => (await import("./mount.ts")).command as CommandDef,
  umount: async () => (await import("./umount.ts")).command as CommandDef,
  inspect: async () => (await import("./inspect.ts")).command as CommandDef,
  export: async () => (await import("./export.ts")).command as CommandDef,
  registry: async () => (await import("./registry.ts")).command as CommandDef,
};

/** Names of links to this executable, beside `overlaybd-<tool>`. */
const links: Record<string, string> = { convertor: "convert" };

/**
 * Runs the program called as `calledAs` with `words`; returns the exit code: 0, 1 for a failure, 2 for a wrong command
 * line, or what an upstream-named tool is documented to return. Our own bugs end with a stack trace.
 */
export async function runCommandLine(calledAs: string, words: readonly string[]): Promise<number> {
  const linked = links[calledAs] ?? calledAs.replace(/^overlaybd-/, "");
  if (calledAs !== "overlaybd" && (linked in tools || linked in commands)) return run(linked, words);
  const [first, ...rest] = words;
  if (first !== undefined && (first in tools || first in commands)) return run(first, rest);
  if (first === "--version" || first === "-V") {
    process.stdout.write(`overlaybd ${version}\n`);
    return 0;
  }
  if (first === undefined || first === "--help" || first === "-h") {
    print(await overview());
    return first === undefined ? 2 : 0;
  }
  process.stderr.write(`overlaybd: unknown command "${first}"; "overlaybd --help" lists them\n`);
  return 2;
}

async function run(name: string, words: readonly string[]): Promise<number> {
  const tool = tools[name];
  if (tool) return runTool(await tool(), words);
  return runOwn(name, await (commands[name] as () => Promise<CommandDef>)(), words);
}

async function runOwn(name: string, command: CommandDef, words: readonly string[]): Promise<number> {
  if (words.includes("--help") || words.includes("-h")) {
    print(`${await renderUsage(command)}\n`);
    return 0;
  }
  try {
    const { result } = await runCommand(command, { rawArgs: [...words] });
    return typeof result === "number" ? result : 0;
  } catch (error) {
    if (error instanceof OverlaybdError) {
      process.stderr.write(`overlaybd ${name}: ${error.message}\n`);
      return error.code === "E_USAGE" ? 2 : 1;
    }
    // citty's own complaint about the command line.
    if (error instanceof Error && error.name === "CLIError") {
      process.stderr.write(`overlaybd ${name}: ${error.message}; see "overlaybd ${name} --help"\n`);
      return 2;
    }
    throw error;
  }
}

/** Writes a text with colours to stdout, without them when that is no terminal. */
function print(text: string): void {
  process.stdout.write(process.stdout.isTTY ? text : Bun.stripANSI(text));
}

async function overview(): Promise<string> {
  const subCommands: Record<string, CommandDef> = {};
  for (const [name, load] of Object.entries(commands)) subCommands[name] = await load();
  for (const [name, load] of Object.entries(tools)) {
    const tool = await load();
    subCommands[name] = defineCommand({ meta: { name, description: `${tool.summary} (as ${tool.name})` } });
  }
  const root = defineCommand({
    meta: {
      name: "overlaybd",
      version,
      description: "Container images that start before they are downloaded",
    },
    subCommands,
  });
  return `${await renderUsage(root)}\n`;
}
