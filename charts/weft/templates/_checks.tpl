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
{{- $interpreter := .Values.attribution.interpreter }}
{{- if and $interpreter.url (not $interpreter.model) }}
{{- fail "attribution.interpreter.url is set without a model: set attribution.interpreter.model to one that the endpoint has." }}
{{- end }}
{{- if and (not $interpreter.url) (or $interpreter.model $interpreter.existingSecret) }}
{{- fail "attribution.interpreter has a model or a Secret, but no url: set that too, or leave both of them empty." }}
{{- end }}
{{- $ca := .Values.bucket.ca }}
{{- if and $ca.existingSecret $ca.existingConfigMap }}
{{- fail "bucket.ca.existingSecret and bucket.ca.existingConfigMap exclude each other: the authority comes from one place; set one of them." }}
{{- end }}
{{- if and (include "weft.bucketAuthority" .Values) (not (hasPrefix "s3+https://" .Values.bucket.url)) }}
{{- fail "bucket.ca is the authority of a bucket with TLS, but bucket.url is not s3+https://...: correct the URL, or leave the names of bucket.ca empty." }}
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
{{- $needs := dict "activations" (list "cache") "trainer" (list "cache") "attribution" (list "activations" "cache") }}
{{- $_ := set $needs "console" (list "activations" "cache" "trainer" "attribution") }}
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
{{- range $value := list "auth" "bucket" "tls" }}
{{- $own := index $.Values $value }}
{{- if or (ne $value "tls") $own.enabled }}
{{- $secret := dict "root" $ "found" $found "kind" "Secret" "value" (printf "%s.existingSecret" $value) }}
{{- $_ := set $secret "name" $own.existingSecret }}
{{- include "weft.checks.named" (merge $secret (dict "keys" (values $own.keys) "keysValue" (printf "%s.keys" $value))) }}
{{- end }}
{{- end }}
{{- end }}
{{- $ca := .Values.bucket.ca }}
{{- range $kind := list "Secret" "ConfigMap" }}
{{- $value := printf "existing%s" $kind }}
{{- if index $ca $value }}
{{- $found := lookup "v1" $kind $.Release.Namespace "" }}
{{- if $found }}
{{- $object := dict "root" $ "found" $found "kind" $kind "value" (printf "bucket.ca.%s" $value) }}
{{- $_ := set $object "name" (index $ca $value) }}
{{- include "weft.checks.named" (merge $object (dict "keys" (list $ca.key) "keysValue" "bucket.ca.key")) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Takes root, found (all objects of a kind), kind, value (that names the object), name, keys (that it must have) and
keysValue (that names them).
*/}}
{{- define "weft.checks.named" -}}
{{- $object := dict }}
{{- range .found.items }}
{{- if eq .metadata.name $.name }}
{{- $object = . }}
{{- end }}
{{- end }}
{{- if not $object }}
{{- fail (printf "%s names %s, and there is no such %s in namespace %s: make it first, or correct the name." .value .name .kind .root.Release.Namespace) }}
{{- end }}
{{- range $key := .keys }}
{{- if not (hasKey (default dict $object.data) $key) }}
{{- fail (printf "%s %s, named by %s, has no key %s: add it, or name another key in %s." $.kind $.name $.value $key $.keysValue) }}
{{- end }}
{{- end }}
{{- end }}
