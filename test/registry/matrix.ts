/**
 * The fault matrix: each fault in each phase of reading a layer lazily, once passing and once lasting. What should come out
 * is the right bytes, or one clear error by the read deadline; never wrong bytes, a hang or a busy loop.
 *
 *   bun test/registry/matrix.ts
 */
import { join } from "node:path";
import { FileCache } from "../../src/blob/cache.ts";
import { LayerDownload } from "../../src/blob/download.ts";
import { OverlaybdError } from "../../src/error.ts";
import { blobOrigin } from "../../src/image/remote.ts";
import { repositoryAccess } from "../../src/registry/access.ts";
import { fixedCredentials } from "../../src/registry/credentials/source.ts";
import { parseReference } from "../../src/registry/reference.ts";
import type { Repository } from "../../src/registry/repository.ts";
import { serveRegistry } from "../../src/registry/server.ts";
import {
  type Fault,
  type FaultProxy,
  type SeenRequest,
  startFaultProxy,
  startTokenGate,
  temporaryDirectory,
} from "../fixtures/registry.ts";
import { describeBytes, noise, pushImage } from "./images.ts";

/** Milliseconds. Far below the defaults, so that the matrix is done in seconds. */
export const READ_DEADLINE = 3000;
const LIMITS = {
  deadline: 500,
  stall: 300,
  retry: { attempts: 4, pause: 60, longest: 500, longestAsked: 1500 },
};
/** Cells that are worked on at the same time. */
const PARALLEL = 12;
/** A fault that passes hits this many requests. */
const PASSING = 2;

const CREDENTIALS = "eve:pa55-secret";
const [user, password] = CREDENTIALS.split(":");

/** "refuse": nobody listens. "expire": tokens, and at the object store signed URLs, are not valid any more. */
type Trouble = Fault | "refuse" | "expire";

export const faults: Readonly<Record<string, Trouble>> = {
  "429, Retry-After 1 s": { kind: "status", status: 429, headers: { "retry-after": "1" } },
  "500": { kind: "status", status: 500 },
  "503": { kind: "status", status: 503 },
  reset: { kind: "reset" },
  "truncated body": { kind: "truncate", bytes: 20 },
  "wrong Content-Range": { kind: "headers", headers: { "content-range": "bytes 1-2/3" } },
  "slow drip": { kind: "drip", pause: 20 },
  "black hole": { kind: "hang" },
  "expired token": "expire",
  "connection refused": "refuse",
};

const layers = { first: noise(600_000, 11), second: noise(600_000, 13) };
const PIECE = { offset: 70_000, length: 20_000 };
const REFUSAL_MS = 100;

/** What stands between the client and the layers of one cell. */
interface Stage {
  readonly repository: Repository;
  /** The registry, behind its token service. */
  readonly front: FaultProxy;
  /** The object store that the registry redirects to. */
  readonly store: FaultProxy;
  /** Makes the tokens that were handed out worthless. */
  revoke(): void;
}

export interface Phase {
  readonly at: "front" | "store";
  /** Whether the fault may hit this request. */
  hits(request: SeenRequest): boolean;
  /** Brings everything to the moment before the phase. */
  prepare(stage: Stage): Promise<void>;
  /** Goes through the phase; false: with wrong bytes. */
  run(stage: Stage): Promise<boolean>;
  /** Its answers are ranges. */
  readonly ranged: boolean;
  /** The transfer breaks off once before the fault begins. */
  readonly midBody?: boolean;
  /** Requests that are under way at the same time; default 1. */
  readonly parallel?: number;
}

const isBlob = ({ url }: SeenRequest) => url.includes("/blobs/");

/** The whole layer, in the background, into a directory of its own. */
async function download({ repository }: Stage): Promise<boolean> {
  const directory = temporaryDirectory();
  try {
    const cache = new FileCache(join(directory.path, "cache"));
    const layer = layers.first;
    const { digest, size } = describeBytes(layer);
    const origin = blobOrigin(repository, digest, size);
    const blob = await cache.open(digest, origin);
    const { signal } = new AbortController();
    const limits = { blockSize: 64 << 10, signal, pace: async () => {}, progress: () => {} };
    const target = { digest, origin, directory: directory.path, blob };
    await new LayerDownload(target, cache, limits).attempt().finally(() => blob.close());
    const bytes = await Bun.file(join(directory.path, "overlaybd.commit")).bytes();
    return Buffer.compare(bytes, layer) === 0;
  } finally {
    directory.remove();
  }
}

async function read({ repository }: Stage, layer: Uint8Array): Promise<boolean> {
  const { offset, length } = PIECE;
  const bytes = await repository.blobRange(describeBytes(layer).digest, offset, length, layer.length);
  return Buffer.compare(bytes, layer.subarray(offset, offset + length)) === 0;
}

/** A first read has worked, so what fails from now on is waited for. */
async function warm(stage: Stage): Promise<void> {
  if (!(await read(stage, layers.first))) throw new Error("the matrix itself does not work");
}

export const phases: Readonly<Record<string, Phase>> = {
  resolve: {
    at: "front",
    hits: ({ url }) => url.includes("/manifests/"),
    prepare: async () => {},
    run: async ({ repository }) => {
      const bytes = await repository.manifest(await repository.resolve("v1"));
      return (
        JSON.parse(new TextDecoder().decode(bytes)).layers[0].digest === describeBytes(layers.first).digest
      );
    },
    ranged: false,
  },
  token: {
    at: "front",
    hits: ({ url }) => url.startsWith("/token"),
    prepare: async (stage) => {
      await warm(stage);
      stage.revoke();
    },
    run: (stage) => read(stage, layers.second),
    ranged: false,
  },
  redirect: {
    at: "front",
    hits: isBlob,
    prepare: warm,
    run: (stage) => read(stage, layers.second),
    ranged: false,
  },
  "first range": {
    at: "store",
    hits: isBlob,
    prepare: warm,
    run: (stage) => read(stage, layers.first),
    ranged: true,
  },
  "mid-body": {
    at: "store",
    hits: isBlob,
    prepare: warm,
    run: (stage) => read(stage, layers.first),
    ranged: true,
    midBody: true,
  },
  "background download": {
    at: "store",
    hits: isBlob,
    prepare: warm,
    run: download,
    ranged: true,
    parallel: 4,
  },
};

export interface Outcome {
  readonly kind: "right" | "wrong" | "error";
  readonly error?: unknown;
  /** Milliseconds. */
  readonly elapsed: number;
  /** Requests that the fault could hit. */
  readonly requests: number;
}

export interface Cell {
  readonly fault: string;
  readonly phase: string;
  readonly passing: Outcome;
  readonly lasting: Outcome;
}

/** Only answers that are ranges can be wrong ones. */
export function isMeaningful(fault: string, phase: string): boolean {
  return fault !== "wrong Content-Range" || phases[phase].ranged;
}

/** Runs every combination that means something, several at a time. */
export async function runMatrix(): Promise<Cell[]> {
  const directory = temporaryDirectory();
  const server = await serveRegistry({ directory: join(directory.path, "layout") });
  const pusher = await repositoryAccess({ plain: true })(parseReference(`${new URL(server.url).host}/app`));
  await pushImage(pusher, "v1", layers.first);
  await pusher.pushBlob(describeBytes(layers.second), new Blob([layers.second]));
  const cells: Cell[] = [];
  const combinations = Object.keys(faults).flatMap((fault) =>
    Object.keys(phases).flatMap((phase) => (isMeaningful(fault, phase) ? { fault, phase } : [])),
  );
  const work = async () => {
    for (let next = combinations.shift(); next !== undefined; next = combinations.shift()) {
      const { fault, phase } = next;
      const passing = await runCell(server.url, faults[fault], phases[phase], false);
      const lasting = await runCell(server.url, faults[fault], phases[phase], true);
      cells.push({ fault, phase, passing, lasting });
    }
  };
  try {
    await Promise.all(Array.from({ length: PARALLEL }, work));
  } finally {
    await server.stop();
    directory.remove();
  }
  return cells;
}

async function runCell(upstream: string, trouble: Trouble, phase: Phase, lasting: boolean): Promise<Outcome> {
  await using cleanup = new AsyncDisposableStack();
  const stage = await setStage(upstream, cleanup);
  await phase.prepare(stage);
  const proxy = stage[phase.at];
  const seen = proxy.seen.filter(phase.hits).length;
  await inject(stage, trouble, phase, lasting);
  const started = performance.now();
  const outcome = await phase.run(stage).then(
    (right) => ({ kind: right ? ("right" as const) : ("wrong" as const) }),
    (error: unknown) => ({ kind: "error" as const, error }),
  );
  return {
    ...outcome,
    elapsed: performance.now() - started,
    requests: proxy.seen.filter(phase.hits).length - seen,
  };
}

/** client → front → token gate → registry, whose redirects lead to store → registry */
async function setStage(upstream: string, cleanup: AsyncDisposableStack): Promise<Stage> {
  const store = await startFaultProxy(upstream);
  cleanup.defer(() => store.stop());
  const redirecting = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      const { pathname } = new URL(request.url);
      if (!pathname.includes("/blobs/")) {
        const { headers, method } = request;
        return fetch(upstream + pathname, { headers, method, decompress: false });
      }
      const expires = Math.floor(Date.now() / 1000) + 3600;
      return new Response(null, {
        status: 307,
        headers: { location: `${store.origin}${pathname}?expires=${expires}&sig=5ecret` },
      });
    },
  });
  cleanup.defer(() => redirecting.stop(true));
  let realm = "";
  const gate = startTokenGate(redirecting.url.origin, {
    user,
    password,
    challenge: () => `Bearer realm="${realm}",service="test"`,
  });
  cleanup.defer(() => gate.stop());
  const front = await startFaultProxy(`http://${gate.host}`);
  cleanup.defer(() => front.stop());
  realm = `${front.origin}/token`;
  const access = {
    plain: true,
    credentials: fixedCredentials(CREDENTIALS),
    readDeadline: READ_DEADLINE,
    ...LIMITS,
  };
  const repository = await repositoryAccess(access)(parseReference(`${front.host}/app`));
  return { repository, front, store, revoke: () => gate.revoke() };
}

/** Makes what `phase` asks of its proxy fail, `PASSING` times or for good. */
async function inject(stage: Stage, trouble: Trouble, phase: Phase, lasting: boolean): Promise<void> {
  const proxy = stage[phase.at];
  const refuse = async () => {
    await proxy.refuse();
    if (!lasting) setTimeout(() => void proxy.accept(), REFUSAL_MS);
  };
  if (trouble === "refuse" && !phase.midBody) return refuse();
  const fault =
    trouble === "expire" ? expired(stage, phase) : trouble === "refuse" ? () => undefined : () => trouble;
  let left = lasting ? Number.POSITIVE_INFINITY : timesOf(trouble);
  let broken = phase.midBody !== true;
  proxy.fault = (request) => {
    if (!phase.hits(request)) return undefined;
    if (broken) return left-- > 0 ? fault() : undefined;
    broken = true;
    if (trouble === "refuse") setTimeout(() => void refuse(), 10);
    return { kind: "truncate", bytes: PIECE.length / 2 };
  };
}

function expired(stage: Stage, phase: Phase): () => Fault | undefined {
  if (phase.at === "store") return () => ({ kind: "status", status: 403 });
  return () => {
    stage.revoke();
    return undefined;
  };
}

/** What is renewed at once, or asks for a long pause, comes only once when it passes. */
function timesOf(trouble: Trouble): number {
  const once =
    trouble === "expire" || (typeof trouble === "object" && "status" in trouble && trouble.status === 429);
  return once ? 1 : PASSING;
}

function describeOutcome({ kind, error, elapsed, requests }: Outcome): string {
  const what =
    kind === "right" ? "bytes" : error instanceof OverlaybdError ? error.code.slice(2) : kind.toUpperCase();
  return `${what} ${(elapsed / 1000).toFixed(1)}s ${requests}r`;
}

if (import.meta.main) {
  const cells = await runMatrix();
  const width = 36;
  console.log(
    `each cell: while the fault passes | while it lasts; seconds, requests (read deadline ${READ_DEADLINE / 1000} s)\n`,
  );
  console.log(["", ...Object.keys(phases)].map((name, i) => name.padEnd(i === 0 ? 22 : width)).join(""));
  for (const fault of Object.keys(faults)) {
    const row = Object.keys(phases).map((phase) => {
      const cell = cells.find((one) => one.fault === fault && one.phase === phase);
      return cell ? `${describeOutcome(cell.passing)} | ${describeOutcome(cell.lasting)}` : "–";
    });
    console.log(fault.padEnd(22) + row.map((text) => text.padEnd(width)).join(""));
  }
}
