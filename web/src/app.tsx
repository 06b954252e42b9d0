import { ActionIcon, Kbd, Modal, Tooltip, useComputedColorScheme, useMantineColorScheme } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Suspense, lazy, useEffect, useRef, useState } from "react";
import { Link, Redirect, Route, Switch, useLocation } from "wouter";
import { setOnUnauthorized } from "./api/client";
import { askAgain, healthQuery } from "./api/queries";
import { formatBytes } from "./format";
import { Icon } from "./ui/icons";
import { useKeys } from "./ui/keys";
import { Boundary, Waiting } from "./ui/pieces";
import { SignIn } from "./ui/sign-in";
import { Toasts } from "./ui/toast";
import { decoded } from "./ui/url";

const Runs = lazy(() => import("./views/runs/runs"));
const NewRun = lazy(() => import("./views/new-run/new-run"));
const RunView = lazy(() => import("./views/run/run"));
const Compare = lazy(() => import("./views/compare/compare"));
const Playground = lazy(() => import("./views/playground/playground"));

const PLACES = [
  ["/", "Runs"],
  ["/new", "New run"],
  ["/playground", "Playground"],
] as const;

export function App() {
  const [signedOut, setSignedOut] = useState(false);
  const [help, setHelp] = useState(false);
  const [location, navigate] = useLocation();
  const content = useRef<HTMLElement>(null);
  useEffect(() => setOnUnauthorized(() => setSignedOut(true)), []);
  useEffect(() => {
    if (!location.startsWith("/runs/")) document.title = "Limner";
  }, [location]);
  useKeys({
    "g r": () => navigate("/"),
    "g n": () => navigate("/new"),
    "g p": () => navigate("/playground"),
    "?": () => setHelp(true),
  });
  return (
    <>
      <a
        className="skip"
        href="#content"
        onClick={(event) => {
          event.preventDefault();
          content.current?.focus();
        }}
      >
        To the content
      </a>
      <Top location={location} onHelp={() => setHelp(true)} />
      <main id="content" ref={content} tabIndex={-1}>
        {signedOut ? (
          <SignIn onDone={() => setSignedOut(false)} />
        ) : (
          <Boundary place={location}>
            <Suspense fallback={<Waiting what="Loading …" />}>
              <Switch>
                <Route path="/">
                  <Runs />
                </Route>
                <Route path="/new">
                  <NewRun />
                </Route>
                <Route path="/compare">
                  <Compare />
                </Route>
                <Route path="/playground">
                  <Playground />
                </Route>
                <Route path="/runs/:id/:view?">
                  {({ id, view }) => <RunView key={id} id={decoded(id)} view={view ?? "charts"} />}
                </Route>
                <Route path="/runs">
                  <Redirect to="/" />
                </Route>
                <Route>
                  <div className="empty">
                    <h2>There is no such page</h2>
                    <Link href="/">All runs</Link>
                  </div>
                </Route>
              </Switch>
            </Suspense>
          </Boundary>
        )}
      </main>
      <Toasts />
      <Help opened={help} onClose={() => setHelp(false)} />
    </>
  );
}

function Top({ location, onHelp }: { location: string; onHelp: () => void }) {
  const { setColorScheme } = useMantineColorScheme();
  const scheme = useComputedColorScheme("light");
  const { data: health, isError } = useQuery(healthQuery);
  const client = useQueryClient();
  useEffect(() => {
    if (!isError) askAgain(client);
  }, [isError, client]);
  const here = (path: string): boolean =>
    path === "/"
      ? location === "/" || location.startsWith("/runs") || location.startsWith("/compare")
      : location.startsWith(path);
  return (
    <header className="top">
      <Link href="/" className="brand" aria-label="Limner, all runs">
        <img src="/icon.svg" alt="" width="22" height="22" />
        <span>Limner</span>
      </Link>
      <nav aria-label="Main">
        {PLACES.map(([path, name]) => (
          <Link key={path} href={path} aria-current={here(path) ? "page" : undefined}>
            {name}
          </Link>
        ))}
      </nav>
      <div className="end">
        {isError && (
          <span className="pill failed">
            <i />
            no server
          </span>
        )}
        {health?.device && (
          <span className="wide-only num" title={health.runs_dir}>
            {health.device.name} · {health.device.cores} cores · {formatBytes(health.device.memory_bytes)}
          </span>
        )}
        <Tooltip label={scheme === "dark" ? "Light colours" : "Dark colours"}>
          <ActionIcon
            aria-label={scheme === "dark" ? "Light colours" : "Dark colours"}
            onClick={() => setColorScheme(scheme === "dark" ? "light" : "dark")}
          >
            <Icon name={scheme === "dark" ? "sun" : "moon"} />
          </ActionIcon>
        </Tooltip>
        <Tooltip label="Keys (?)">
          <ActionIcon aria-label="Keys" onClick={onHelp}>
            <Icon name="help" />
          </ActionIcon>
        </Tooltip>
      </div>
    </header>
  );
}

const KEYS: [string, [string, string][]][] = [
  [
    "Anywhere",
    [
      ["g r", "runs"],
      ["g n", "new run"],
      ["g p", "playground"],
      ["?", "these keys"],
    ],
  ],
  [
    "Runs",
    [
      ["/", "filter"],
      ["j k", "next, previous run"],
      ["Enter", "open"],
      ["x", "choose for comparing"],
    ],
  ],
  [
    "A run",
    [
      ["p", "pause or resume"],
      ["c", "checkpoint now"],
      ["1 … 5", "charts, samples, checkpoints, log, settings"],
    ],
  ],
  [
    "A chart",
    [
      ["← →", "cursor, with Shift ten points"],
      ["Home End", "first, last point"],
      ["Enter", "hold the cursor's step; Esc lets it go"],
      ["+ − 0", "zoom in, out, all"],
      ["PgUp PgDn", "earlier, later"],
      ["l", "logarithmic"],
      ["t", "as a table"],
    ],
  ],
  [
    "A chart, by mouse",
    [
      ["drag", "zoom"],
      ["Shift + drag", "move"],
      ["double click", "all"],
      ["click", "hold the cursor's step"],
    ],
  ],
];

function Help({ opened, onClose }: { opened: boolean; onClose: () => void }) {
  return (
    <Modal opened={opened} onClose={onClose} title="Keys" size="lg" closeButtonProps={{ "aria-label": "Close" }}>
      <div style={{ display: "grid", gap: 16, gridTemplateColumns: "repeat(auto-fit, minmax(230px, 1fr))" }}>
        {KEYS.map(([where, keys]) => (
          <section key={where}>
            <h3 style={{ marginBottom: 6 }}>{where}</h3>
            <dl className="facts">
              {keys.map(([key, what]) => (
                <div key={key} style={{ display: "contents" }}>
                  <dt>
                    <Kbd size="xs">{key}</Kbd>
                  </dt>
                  <dd>{what}</dd>
                </div>
              ))}
            </dl>
          </section>
        ))}
      </div>
    </Modal>
  );
}
