/** Docker's credential helpers, programs that keep secrets elsewhere (docker-credential-helpers protocol). */
import { OverlaybdError } from "../../error.ts";
import { parseJsonObject } from "../json.ts";
import type { Credential } from "./source.ts";

/** How helpers name an identity token. */
const IDENTITY_TOKEN_USER = "<token>";
const HELPER_TIMEOUT_MS = 30_000;

/** Runs `docker-credential-NAME get`: the server's key on stdin, JSON on stdout. */
export async function askHelper(name: unknown, key: string): Promise<Credential | undefined> {
  if (typeof name !== "string" || !/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name)) {
    throw new OverlaybdError(
      "E_CONFIG",
      `${JSON.stringify(name)} is not the name of a Docker credential helper`,
    );
  }
  const program = `docker-credential-${name}`;
  const path = Bun.which(program, { PATH: process.env.PATH });
  if (path === null) {
    throw new OverlaybdError("E_CONFIG", `the Docker configuration wants ${program}, which is not in PATH`);
  }
  const child = Bun.spawn([path, "get"], {
    stdin: Buffer.from(key),
    stdout: "pipe",
    stderr: "ignore",
    timeout: HELPER_TIMEOUT_MS,
  });
  const output = await new Response(child.stdout).bytes();
  const status = await child.exited;
  // Helpers report "not found" on stdout with a failing status, in words that differ; only that case is harmless.
  if (status !== 0) {
    if (/not found/i.test(Buffer.from(output).toString())) return undefined;
    throw new OverlaybdError("E_AUTH", `${program} get failed for ${key} (exit status ${status})`);
  }
  const { Username: username, Secret: secret } = parseJsonObject(output, `the answer of ${program}`);
  if (typeof username !== "string" || typeof secret !== "string") {
    throw new OverlaybdError("E_CONFIG", `${program} answered without Username or Secret`);
  }
  return username === IDENTITY_TOKEN_USER ? { identityToken: secret } : { username, password: secret };
}
