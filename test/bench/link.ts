/**
 * A web application over a slow link: from the command line to its first answer with status 200, from an image that is
 * read lazily, lazily with a trace of an earlier start, and pulled and unpacked whole. The link (25 Mbit/s, 40 ms there
 * and back) is between two network namespaces; link.c makes it, because not every kernel has netem.
 *
 *   bun test/bench/link.ts [nginx|python] [runs]      medians of 3 runs by default; needs root and dist/overlaybd
 *
 * Target: with a trace at most 1.3 times what the fetched bytes take on the link at full speed.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { $ } from "bun";
import { buildImage, recipes } from "../fixtures/images.ts";
import { median } from "./median.ts";

const MBIT = 25;
const ONE_WAY_MS = 20;
const SERVER = { namespace: `overlaybd-server-${process.pid}`, address: "10.213.0.1" };
const CLIENT = { namespace: `overlaybd-client-${process.pid}`, address: "10.213.0.2" };
const PORT = 8080;

interface Application {
  readonly recipe: (typeof recipes)[keyof typeof recipes];
  readonly command: readonly string[];
  /** Files that a container runtime, or packages' installers, would have put there. */
  readonly files: Readonly<Record<string, string>>;
}

/** A web application with a numerical library and a database, as its kind is. */
const PYTHON = `
import http.server, json, sqlite3, numpy
from scipy import linalg
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        rows = sqlite3.connect(":memory:").execute("select 6 * 7").fetchone()
        body = json.dumps({"rows": rows, "det": linalg.det(numpy.eye(3))}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", ${PORT}), Answer).serve_forever()
`;

const NGINX = `
daemon off; master_process off; user root; error_log stderr; pid /run/nginx.pid;
events {}
http { access_log off; server { listen 127.0.0.1:${PORT}; root /usr/share/nginx/html; index index.html; } }
`;

/** Where the libraries are that an installer would have linked. */
const LIBRARIES = ["blas", "lapack"].map(
  (name) => `/usr/lib/${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu/${name}`,
);

const applications: Record<string, Application> = {
  nginx: {
    recipe: recipes.nginx,
    command: ["/usr/sbin/nginx", "-e", "stderr", "-c", "/application"],
    files: { application: NGINX, "etc/passwd": "root:x:0:0::/:\n", "etc/group": "root:x:0:\n" },
  },
  python: {
    recipe: recipes.science,
    command: ["/usr/bin/python3", "/application"],
    files: { application: PYTHON },
  },
};

const [, , name = "nginx", runs = "3"] = process.argv;
const application = applications[name];
if (!application) throw new Error(`${name}: there are ${Object.keys(applications).join(" and ")}`);
const RUNS = Number(runs);

const overlaybd = resolve(import.meta.dir, "../../dist/overlaybd");

interface Figures {
  readonly seconds: number;
  readonly bytes: number;
  readonly requests: number;
}

const inside = ({ namespace }: typeof SERVER) => ["nsenter", `--net=/run/netns/${namespace}`];

/** Ends what was started, last first, whatever happens. */
await using cleanup = new AsyncDisposableStack();
const folder = mkdtempSync(join(tmpdir(), "overlaybd-link-"));
cleanup.defer(() => rmSync(folder, { recursive: true, force: true }));
if (!existsSync(overlaybd)) throw new Error("dist/overlaybd is not built");

const image = await buildImage(application.recipe);
await $`cp -r ${image.layout} ${folder}/layout`;
await makeLink();
const registry = await spawnUntil(
  [...inside(SERVER), overlaybd, "registry", join(folder, "layout"), "--listen", `${SERVER.address}:5000`],
  "http://",
);
cleanup.defer(() => end(registry));
const repository = `${SERVER.address}:5000/bench/app`;
await $`${inside(SERVER)} ${overlaybd} convert -r ${repository} -i latest -o lazy --oci --plain -d ${folder}/convert`.quiet();

const trace = join(folder, "trace");
await lazily(["--record-trace", trace]);
const figures = {
  "pull and unpack": await repeated(unpacked),
  lazily: await repeated(() => lazily([])),
  "lazily with trace": await repeated(() => lazily(["--prefetch", trace])),
};
const attainable = await download(figures["lazily with trace"].bytes);
console.log(`${name}: ${MBIT} Mbit/s, ${2 * ONE_WAY_MS} ms there and back; medians of ${RUNS}\n`);
console.log("                    first 200      fetched   requests   at full speed   ratio");
for (const [way, { seconds, bytes, requests }] of Object.entries(figures)) {
  const least = (bytes * 8) / (MBIT * 1e6);
  console.log(
    `${way.padEnd(18)} ${seconds.toFixed(2).padStart(8)} s ${(bytes / 1e6).toFixed(1).padStart(9)} MB ${String(requests).padStart(10)} ${least.toFixed(2).padStart(13)} s ${(seconds / least).toFixed(2).padStart(7)}`,
  );
}
console.log(
  `\ncurl fetches as many bytes as with trace, in one request, in ${attainable.toFixed(2)} s; the trace has ${(readFileSync(trace).length - 24) / 24} records`,
);

/** Both namespaces, with the link between them. */
async function makeLink(): Promise<void> {
  const program = join(folder, "link");
  await $`cc -O2 -pthread -o ${program} ${join(import.meta.dir, "link.c")}`;
  for (const { namespace } of [SERVER, CLIENT]) {
    await $`ip netns add ${namespace}`;
    cleanup.defer(() => $`ip netns del ${namespace}`.then(() => {}));
  }
  const link = await spawnUntil(
    [program, SERVER.namespace, CLIENT.namespace, String(MBIT), String(ONE_WAY_MS)],
    "up",
  );
  cleanup.defer(() => end(link));
  for (const { namespace, address } of [SERVER, CLIENT]) {
    await $`ip -n ${namespace} addr add ${address}/24 dev wire`;
    await $`ip -n ${namespace} link set wire up`;
    await $`ip -n ${namespace} link set lo up`;
  }
}

/** Starts a process and waits until it has said something. */
async function spawnUntil(command: string[], said: string): Promise<Bun.Subprocess> {
  const child = Bun.spawn(command, { stdout: "pipe", stderr: "inherit" });
  let text = "";
  for await (const chunk of child.stdout) {
    text += new TextDecoder().decode(chunk);
    if (text.includes(said)) return child;
  }
  throw new Error(`${command.join(" ")} ended`);
}

async function end(child: Bun.Subprocess): Promise<void> {
  child.kill();
  await child.exited;
}

/** Median time, with the bytes and requests of that run. */
async function repeated(run: () => Promise<Figures>): Promise<Figures> {
  const all: Figures[] = [];
  for (let i = 0; i < RUNS; i++) all.push(await run());
  const middle = median(all.map(({ seconds }) => seconds));
  return all.find(({ seconds }) => seconds === middle) as Figures;
}

async function lazily(options: string[]): Promise<Figures> {
  const work = mkdtempSync(join(folder, "lazy-"));
  const root = join(work, "root");
  mkdirSync(root);
  const since = performance.now();
  const places = ["--plain", "--cache-dir", join(work, "cache"), "--run-dir", join(work, "run")];
  await $`${inside(CLIENT)} ${overlaybd} mount ${repository}:lazy ${root} --upper ${join(work, "upper")} ${places} ${options}`.quiet();
  let seconds = Number.NaN;
  let fetched = { bytes: 0, requests: 0 };
  try {
    seconds = await firstAnswer(root, since);
  } finally {
    const { image } = await $`${overlaybd} umount ${root} --run-dir ${join(work, "run")} --json`.json();
    rmSync(work, { recursive: true, force: true });
    fetched = { bytes: image.fetchedBytes, requests: image.requests };
  }
  return { seconds, ...fetched };
}

/** What a runtime does without lazy loading: all layers down, unpacked in order. */
async function unpacked(): Promise<Figures> {
  const root = mkdtempSync(join(folder, "full-"));
  const since = performance.now();
  for (const layer of image.layers) {
    const url = `http://${repository.replace("/", "/v2/")}/blobs/sha256:${layer.split("/").at(-1)}`;
    const curl = `curl --noproxy '*' -sSf ${url}`;
    await $`${inside(CLIENT)} sh -c ${`${curl} | tar -xz --numeric-owner --xattrs --keep-directory-symlink -C ${root}`}`.quiet();
  }
  const seconds = await firstAnswer(root, since);
  rmSync(root, { recursive: true, force: true });
  return { seconds, bytes: image.compressedSize, requests: image.layers.length };
}

/** Seconds since `since` (of performance.now) until the application in `root` answers. */
async function firstAnswer(root: string, since: number): Promise<number> {
  for (const [path, text] of Object.entries(application.files)) writeFileSync(join(root, path), text);
  const child = Bun.spawn([...inside(CLIENT), "chroot", root, ...application.command], {
    env: { ...process.env, LD_LIBRARY_PATH: LIBRARIES.join(":") },
    stdout: "inherit",
    stderr: "inherit",
  });
  try {
    const ask = `until curl --noproxy '*' -sf http://127.0.0.1:${PORT}/ >/dev/null; do sleep 0.02; kill -0 ${child.pid} || exit 1; done`;
    await $`${inside(CLIENT)} sh -c ${ask}`.quiet();
    return (performance.now() - since) / 1000;
  } finally {
    await end(child);
  }
}

/** Seconds for so many bytes in one request. */
async function download(bytes: number): Promise<number> {
  writeFileSync(join(folder, "bytes"), Buffer.alloc(bytes));
  const server = Bun.spawn(
    [...inside(SERVER), "python3", "-m", "http.server", "--bind", SERVER.address, "5001"],
    { cwd: folder, stdout: "ignore", stderr: "ignore" },
  );
  try {
    const url = `http://${SERVER.address}:5001/bytes`;
    const ask = `curl --noproxy '*' -sf --retry 50 --retry-connrefused --retry-delay 1 -o /dev/null -w '%{time_total}' ${url}`;
    return Number(await $`${inside(CLIENT)} sh -c ${ask}`.text());
  } finally {
    await end(server);
  }
}
