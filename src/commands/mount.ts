/** `overlaybd mount`: an image at a directory, read as it is needed. */
import { resolve } from "node:path";
import { MountRecord, type MountState, mountPoint, RUN_DIRECTORY } from "../device/mount/record.ts";
import { serveMount } from "../device/mount/server.ts";
import { OverlaybdError } from "../error.ts";
import { prefetchFrom, recordTo, type TraceUse } from "../image/trace_use.ts";
import { Readiness, startDaemon } from "../service/daemon.ts";
import { defineCommand } from "./_command.ts";
import { imageArgs, imageOptions } from "./_image.ts";
import { describeMount, describeStats } from "./_mount.ts";

export const command = defineCommand({
  meta: {
    name: "mount",
    description: "Mount an image at a directory; its contents are fetched as they are read",
  },
  args: {
    source: {
      type: "positional",
      description: "Image config, layer file, or reference (HOST/NAME:TAG, oci:DIRECTORY:TAG)",
      required: true,
    },
    directory: { type: "positional", description: "Where to mount it", required: true },
    rw: { type: "boolean", description: "Mount it writable; needs --upper", default: false },
    upper: {
      type: "string",
      description: "Folder that keeps what is written, as a writable layer (made if not there); implies --rw",
    },
    "record-trace": {
      type: "string",
      description: "Record what is read to this file, which is empty or not there, until unmounted",
    },
    prefetch: {
      type: "string",
      description: "Fetch what this file names before it is read: a trace, or a list of paths in the image",
    },
    foreground: { type: "boolean", description: "Serve in this process, until unmounted", default: false },
    json: { type: "boolean", description: "Print JSON", default: false },
    "run-dir": { type: "string", description: "Where running mounts are recorded", default: RUN_DIRECTORY },
    ...imageArgs,
  },
  async run({ args, rawArgs }) {
    const request = {
      source: args.source,
      upper: upperFolder(args),
      directory: await mountPoint(args.directory),
      runDirectory: resolve(args["run-dir"]),
    };
    const options = { ...(await imageOptions(args)), trace: await chosenTrace(args) };
    const announce = (state: MountState) =>
      process.stdout.write(`${args.json ? JSON.stringify(state) : describeMount(state)}\n`);
    const readiness = Readiness.inherited();
    if (!args.foreground && readiness === null) {
      const log = await MountRecord.log(request.runDirectory, request.directory);
      announce(await startDaemon<MountState>(["mount", ...rawArgs], log));
      return 0;
    }
    try {
      const stats = await serveMount(request, options, (state) =>
        readiness ? readiness.ready(state) : announce(state),
      );
      const text = args.json ? JSON.stringify(stats) : describeStats(stats);
      if (!readiness) process.stdout.write(`${text}\n`);
      return 0;
    } catch (error) {
      if (readiness?.failed(error)) return 1;
      throw error;
    }
  },
});

async function chosenTrace(args: {
  "record-trace"?: string;
  prefetch?: string;
}): Promise<TraceUse | undefined> {
  const { "record-trace": recorded, prefetch: used } = args;
  if (recorded === undefined) return used === undefined ? undefined : prefetchFrom(resolve(used));
  if (used === undefined) return recordTo(resolve(recorded));
  throw new OverlaybdError("E_USAGE", "--record-trace and --prefetch cannot be used together");
}

function upperFolder(args: { rw: boolean; upper?: string }): string | undefined {
  if (args.upper !== undefined) return resolve(args.upper);
  if (!args.rw) return undefined;
  throw new OverlaybdError("E_USAGE", "--rw needs --upper FOLDER, which keeps what is written");
}
