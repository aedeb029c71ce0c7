/** Images that do more than being read: they record a trace, or fetch ahead what one names. */
import { consola } from "consola";
import { OverlaybdError } from "../error.ts";
import { decodeTrace, isTrace } from "../format/trace.ts";
import { addListedFiles, parseFileList } from "./file_list.ts";
import type { OpenImage } from "./open.ts";
import { Prefetch } from "./prefetch.ts";
import { withReadAhead } from "./readahead.ts";
import type { Recording } from "./recording.ts";
import type { MissingRange } from "./tables.ts";
import type { TraceUse } from "./trace_use.ts";
import { WantedUnits } from "./wanted.ts";

/** The image, recording what is read of it until it is closed. */
export function withRecording(image: OpenImage, recording: Recording): OpenImage {
  return {
    ...image,
    tables: { ...image.tables, readLog: recording.log },
    close: async () => {
      await recording.finish();
      await image.close();
    },
  };
}

/**
 * The image, whose `prefetch` fetches what a trace or a list of files names, by at most `concurrency` requests at a time.
 * Until that is done nothing is read ahead: the trace knows better.
 */
export function withPrefetch(
  image: OpenImage,
  { name, content }: TraceUse & { kind: "prefetch" },
  concurrency: number,
): OpenImage {
  const prefetch = new Prefetch(image.fetch, concurrency);
  const ahead = withReadAhead(image);
  let running: Promise<void> | undefined;
  let done = false;
  let closed = false;
  /** Rejected when the image is closed. */
  const end = Promise.withResolvers<never>();
  end.promise.catch(() => {});
  const fetch = async (range: MissingRange) => {
    if (closed) throw new OverlaybdError("E_IO", "the image was closed");
    return prefetch.demand(range);
  };

  async function run(): Promise<void> {
    const since = performance.now();
    try {
      const wanted = new WantedUnits(image.tables.layers);
      const bytes = await Promise.race([content, end.promise]);
      if (isTrace(bytes)) wanted.addTrace(decodeTrace(bytes, name));
      else await addListedFiles(wanted, parseFileList(bytes, name), { tables: image.tables, fetch });
      const { bytes: fetched, requests, failures } = await prefetch.run(wanted);
      const seconds = ((performance.now() - since) / 1000).toFixed(2);
      const failed = failures === 0 ? "" : `; ${failures} failed`;
      consola.info(
        `prefetched ${fetched} bytes in ${requests} requests and ${seconds} s by ${name}${failed}`,
      );
    } catch (error) {
      if (!closed) consola.error(`nothing is prefetched: ${error instanceof Error ? error.message : error}`);
    }
    done = true;
  }

  return {
    ...ahead,
    fetch: (range) => (running && !done ? prefetch.demand(range) : ahead.fetch(range)),
    prefetch: () => {
      running ??= run();
    },
    close: async () => {
      closed = true;
      end.reject(new OverlaybdError("E_IO", "the image was closed"));
      prefetch.stop();
      await running;
      await ahead.close();
    },
  };
}
