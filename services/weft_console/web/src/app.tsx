/** The frame around every page: navigation, theme, signing in. */
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { get, onSignedOut, remove } from "./api";
import { DatasetPage } from "./pages/dataset";
import { DatasetsPage } from "./pages/datasets";
import { FeaturePage } from "./features/page";
import { FeatureSearchPage } from "./features/search";
import { GraphPage } from "./graph/page";
import { GraphsPage } from "./pages/graphs";
import { InterpretationPage } from "./interpretation/page";
import { InterpretationsPage } from "./interpretation/list";
import { InsidePage } from "./pages/inside";
import { LabPage } from "./lab/page";
import { RunPage } from "./pages/run";
import { RunsPage } from "./pages/runs";
import { SignIn } from "./pages/sign-in";
import { TranscoderPage } from "./transcoders/page";
import { TranscodersPage } from "./transcoders/list";
import { SECTIONS, useRoute, type Route } from "./routes";
import { currentTheme, nextTheme } from "./theme";
import { Empty } from "./ui/parts";
import { setTabName, tabNameOf } from "./ui/tab-name";

export function App() {
  const route = useRoute();
  const [session, setSession] = useState<"unknown" | "in" | "out">("unknown");
  useEffect(() => {
    get("/api/session").then(() => setSession("in"), () => setSession("out"));
    return onSignedOut(() => setSession("out"));
  }, []);
  const tabName = tabNameOf(route);
  // Before the page's own effects: it may know a better name.
  useLayoutEffect(() => setTabName(tabName), [tabName]);
  const isFirst = useRef(true);
  useEffect(() => {
    // Who follows a link reads on at the page that it leads to, and not at its place on the page that is gone.
    if (!isFirst.current) document.getElementById("main")?.focus({ preventScroll: true });
    isFirst.current = false;
  }, [tabName]);
  useEffect(() => {
    // On a phone the navigation scrolls.
    document.querySelector(".top nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [route.section, session]);
  return (
    <>
      <a class="skip" href="#main">Skip to content</a>
      <header class="top">
        <a class="brand" href="/graphs" aria-label="weft, start page"><img src="/icon.svg" alt="" width="20" height="20" />weft</a>
        <nav aria-label="Sections">
          {SECTIONS.map(([section, name]) => (
            <a key={section} href={`/${section}`} aria-current={route.section === section ? "page" : undefined}>{name}</a>
          ))}
        </nav>
        <div class="top-end">
          <ThemeButton />
          {session === "in" ? (
            <button type="button" class="button quiet" onClick={() => void remove("/api/session").finally(() => setSession("out"))}>Sign out</button>
          ) : null}
        </div>
      </header>
      <main id="main" tabIndex={-1} class={route.section === "graphs" && route.id ? "is-full" : ""}>
        {session === "out" ? <SignIn onDone={() => setSession("in")} /> : session === "in" ? <Page route={route} /> : null}
      </main>
    </>
  );
}

function Page({ route }: { route: Route }) {
  const { section, id, rest = [] } = route;
  if (section === "graphs") return id ? <GraphPage key={id} id={id} /> : <GraphsPage />;
  if (section === "runs") return id ? <RunPage key={id} id={id} /> : <RunsPage />;
  if (section === "datasets") return id ? <DatasetPage key={id} id={id} /> : <DatasetsPage />;
  if (section === "transcoders" && id && rest.length === 1) return <FeatureSearchPage key={id} transcoder={id} />;
  if (section === "transcoders" && id && rest.length === 3) return <FeaturePage key={`${id} ${rest.join()}`} transcoder={id} layer={Number(rest[1])} index={Number(rest[2])} />;
  if (section === "transcoders") return id ? <TranscoderPage key={id} id={id} /> : <TranscodersPage />;
  if (section === "interpretation") return id ? <InterpretationPage key={id} id={id} /> : <InterpretationsPage key={location.search} />;
  if (section === "inside") return <InsidePage />;
  if (section === "lab") return <LabPage />;
  return <Empty title="There is no such page">Graphs, the lab, runs, datasets, transcoders, labels and the inside of the model stand in the navigation above.</Empty>;
}

const THEME_ICONS = { system: "◐", light: "☀", dark: "☾" };

function ThemeButton() {
  const [theme, setTheme] = useState(currentTheme());
  return (
    <button type="button" class="button quiet" aria-label={`Theme: ${theme}. Change it.`} title={`Theme: ${theme}`} onClick={() => setTheme(nextTheme())}>
      <span aria-hidden="true">{THEME_ICONS[theme]}</span>
    </button>
  );
}
