{{/*
What the schema cannot say, or not in a sentence a person would want to read. The first wrong value ends the render.
*/}}
{{- define "weft.checks" -}}
{{- include "weft.checks.secrets" . }}
{{- include "weft.checks.models" . }}
{{- include "weft.checks.components" . }}
{{- include "weft.checks.cluster" . }}
{{- end }}

{{- define "weft.checks.secrets" -}}
{{- if not .Values.auth.existingSecret }}
{{- fail "auth.existingSecret is empty: name an existing Secret that holds one token a service; README.md of the chart shows how to make it." }}
{{- end }}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) }}
{{- fail "tls.existingSecret is empty while tls.enabled is true: name an existing Secret with tls.crt, tls.key and ca.crt, or set tls.enabled to false to speak in the clear." }}
{{- end }}
{{- if and (not .Values.tls.enabled) (or .Values.tls.existingSecret .Values.tls.mutual) }}
{{- fail "tls.enabled is false, which contradicts tls.existingSecret and tls.mutual: set tls.enabled to true, or leave both of them unset." }}
{{- end }}
{{- if not .Values.bucket.url }}
{{- fail "bucket.url is empty: give the bucket as s3+https://host/bucket, or s3+http://host:port/bucket." }}
{{- end }}
{{- if not .Values.bucket.existingSecret }}
{{- fail "bucket.existingSecret is empty: name an existing Secret with the bucket's access key and secret key." }}
{{- end }}
{{- end }}

{{- define "weft.checks.models" -}}
{{- $models := .Values.models }}
{{- $sources := list }}
{{- range $name := list "persistentVolumeClaim" "bucketPrefix" "hub" }}
{{- if index $models $name }}
{{- $sources = append $sources (printf "models.%s" $name) }}
{{- end }}
{{- end }}
{{- if gt (len $sources) 1 }}
{{- fail (printf "%s exclude each other: models come from one place; set one of them and leave the others empty." (join " and " $sources)) }}
{{- end }}
{{- if and (not $sources) (or .Values.activations.enabled .Values.attribution.enabled) }}
{{- fail "no source of models: set one of models.persistentVolumeClaim, models.bucketPrefix and models.hub." }}
{{- end }}
{{- if and $models.subPath (not $models.persistentVolumeClaim) }}
{{- fail "models.subPath is a folder of models.persistentVolumeClaim, which is empty: set that too, or leave subPath empty." }}
{{- end }}
{{- if and $models.hubToken.existingSecret (not $models.hub) }}
{{- fail "models.hubToken is for models.hub, which is empty: set that too, or leave hubToken.existingSecret empty." }}
{{- end }}
{{- end }}

{{- define "weft.checks.components" -}}
{{- $needs := dict "activations" (list "cache") "trainer" (list "cache") "attribution" (list "activations") }}
{{- $_ := set $needs "console" (list "cache" "trainer" "attribution") }}
{{- range $component, $peers := $needs }}
{{- range $peer := $peers }}
{{- if and (index $.Values $component).enabled (not (index $.Values $peer).enabled) }}
{{- fail (printf "%s.enabled is true, which needs %s.enabled: enable both, or disable both." $component $peer) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $component := list "activations" "cache" "attribution" "console" }}
{{- $own := index $.Values $component }}
{{- if not (or (int $own.maxSurge) (int $own.maxUnavailable)) }}
{{- fail (printf "%s.maxSurge and %s.maxUnavailable are both 0, so that no pod could ever be exchanged: raise one of them." $component $component) }}
{{- end }}
{{- $hpa := dig "autoscaling" dict $own }}
{{- if and $hpa $hpa.enabled (gt (int $hpa.minReplicas) (int $hpa.maxReplicas)) }}
{{- fail (printf "%s.autoscaling.minReplicas is %d, more than maxReplicas, %d: lower it or raise the other." $component (int $hpa.minReplicas) (int $hpa.maxReplicas)) }}
{{- end }}
{{- end }}
{{- $trainer := .Values.trainer }}
{{- if eq $trainer.launcher "local" }}
{{- if gt (int $trainer.replicas) 1 }}
{{- fail (printf "trainer.replicas is %d, but with trainer.launcher local ranks are processes of one controller: set replicas to 1, or launcher to kubernetes." (int $trainer.replicas)) }}
{{- end }}
{{- if or $trainer.ranks.queue (ne $trainer.ranks.kind "auto") }}
{{- fail "trainer.ranks.queue and trainer.ranks.kind are for pods of ranks, and trainer.launcher is local: leave them unset, or set launcher to kubernetes." }}
{{- end }}
{{- end }}
{{- $usual := dict "certificate" "tls.crt" "privateKey" "tls.key" "authority" "ca.crt" }}
{{- if and $trainer.enabled (eq $trainer.launcher "kubernetes") .Values.tls.enabled (ne (toJson $usual) (toJson .Values.tls.keys)) }}
{{- fail "tls.keys are not the usual ones, which ranks need: rename the Secret's keys to tls.crt, tls.key and ca.crt, or set trainer.launcher to local." }}
{{- end }}
{{- $ingress := .Values.console.ingress }}
{{- if and .Values.console.enabled $ingress.enabled }}
{{- if not $ingress.hosts }}
{{- fail "console.ingress.hosts is empty: give the names under which browsers ask for the page, or set console.ingress.enabled to false." }}
{{- end }}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.consoleFrom) }}
{{- fail "console.ingress.enabled is true, but networkPolicy.consoleFrom is empty, so that no ingress controller reaches the page: name the controller's namespace there." }}
{{- end }}
{{- end }}
{{- end }}

{{/* Looks for the Secrets, where helm speaks with a cluster: whoever installs may list them, helm keeps its own there. */}}
{{- define "weft.checks.cluster" -}}
{{- $found := lookup "v1" "Secret" .Release.Namespace "" }}
{{- if $found }}
{{- $auth := .Values.auth }}
{{- $keys := values $auth.keys }}
{{- include "weft.checks.secret" (dict "root" . "found" $found "value" "auth" "name" $auth.existingSecret "keys" $keys) }}
{{- $bucket := .Values.bucket }}
{{- $keys = values $bucket.keys }}
{{- include "weft.checks.secret" (dict "root" . "found" $found "value" "bucket" "name" $bucket.existingSecret "keys" $keys) }}
{{- if .Values.tls.enabled }}
{{- $keys = values .Values.tls.keys }}
{{- include "weft.checks.secret" (dict "root" . "found" $found "value" "tls" "name" .Values.tls.existingSecret "keys" $keys) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Takes root, found (all Secrets), value (that names the Secret), name and keys. */}}
{{- define "weft.checks.secret" -}}
{{- $secret := dict }}
{{- range .found.items }}
{{- if eq .metadata.name $.name }}
{{- $secret = . }}
{{- end }}
{{- end }}
{{- if not $secret }}
{{- fail (printf "%s.existingSecret names %s, and there is no such Secret in namespace %s: make it first, or correct the name." .value .name .root.Release.Namespace) }}
{{- end }}
{{- range $key := .keys }}
{{- if not (hasKey (default dict $secret.data) $key) }}
{{- fail (printf "Secret %s, named by %s.existingSecret, has no key %s: add it, or name another key in %s.keys." $.name $.value $key $.value) }}
{{- end }}
{{- end }}
{{- end }}
